"""The bodies of the replies to Query: the served models, and the broker's status. Pure."""

from __future__ import annotations

from broker.ledger import Ledger
from broker.listing import Allows, served_versions
from broker.scheduler import Scheduler
from broker.state import Wanted


def describe_models(scheduler: Scheduler, allows: Allows) -> list[dict[str, object]]:
    """The reply to Query "models": the served versions that the asking key is for."""
    return [
        {
            **pool.first[0].models[model, version].description,
            "workers": len(pool.runs),
            "latest": scheduler.pools[Wanted(model)].version == version,
        }
        for (model, version, _), pool in served_versions(scheduler)
        if allows(model)
    ]


def describe_status(ledger: Ledger, now: float, allows: Allows) -> dict[str, object]:
    """The reply to Query "status", for the models that the asking key is for. Times are in seconds."""
    counts, scheduler = ledger.counts, ledger.scheduler
    return {
        "uptime": now - ledger.started,
        "stopping": ledger.stopping,
        "requests": {
            "accepted": counts["accepted"],
            "outstanding": len(ledger.requests),
            "queued": scheduler.queued,
            "queued_bytes": scheduler.queued_bytes,
            "served": counts["served"],
            "failed": _by_code(counts, "failed."),
            "refused": _by_code(counts, "refused."),
            "retried": counts["retried"],
        },
        "dropped": {name: counts[name] for name in ("late", "duplicate", "malformed", "undelivered")},
        "lost_workers": counts["lost_workers"],
        "models": [
            {
                "name": name,
                "version": version,
                "workers": len(pool.runs),
                "latest": scheduler.pools[Wanted(name)].version == version,
                "slots": sum(ledger.workers[peer].slots for peer in pool.runs),
                "of_workers": len(scheduler.holders[name]),
                "of_slots": sum(worker.slots for worker in scheduler.holders[name].values()),
            }
            for (name, version, _), pool in served_versions(scheduler)
            if allows(name)
        ],
        "queues": [
            {"model": name, "version": version, "queued": len(queue), "bytes": queue.nbytes}
            for (name, version, _), queue in sorted(scheduler.queues.items(), key=lambda item: item[0])
            if allows(name)
        ],
        "workers": [
            {
                "name": worker.name,
                "address": worker.address,
                "models": [f"{name}:{version}" for name, version in sorted(worker.models) if allows(name)],
                "slots": worker.slots,
                "outstanding": len(worker.held),
                "state": worker.state.value,
                "served": worker.served,
                "failed": worker.failed,
                "silent": now - worker.heard_at,
            }
            for worker in ledger.workers.values()
        ],
    }


def _by_code(counts: dict[str, int], prefix: str) -> dict[str, int]:
    return {name[len(prefix) :]: count for name, count in sorted(counts.items()) if name.startswith(prefix)}
