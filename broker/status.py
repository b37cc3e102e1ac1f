"""The bodies of the replies to Query: the served models, and the broker's status. Pure."""

from __future__ import annotations

from collections import Counter

from msgspec import to_builtins

from broker.ledger import Ledger
from broker.listing import Allows, served_versions
from broker.state import Wanted, Worker
from broker.statistics import MOST_VERSIONS, VersionStatistics
from broker.versions import Pool
from broker.ways import Ways, others, way_of_worker


def describe_models(ledger: Ledger, allows: Allows) -> list[dict[str, object]]:
    """The reply to Query "models": the served versions that the asking key is for."""
    scheduler = ledger.scheduler
    return [
        {
            **_described(ledger, pool, model, version),
            "workers": len(pool.runs),
            "latest": scheduler.pools[Wanted(model)].version == version,
            "labels": ledger.routes.labels_of(model, version),
        }
        for (model, version, _), pool in served_versions(scheduler)
        if allows(model)
    ]


def _described(ledger: Ledger, pool: Pool, name: str, version: int) -> dict[str, object]:
    """A version as its workers announced it, with what counts of its configuration if they disagree."""
    models = [worker.models[name, version] for worker in pool.first]
    found: dict[str, object] = {**models[0].description}
    config = {**models[0].description.get("config", {})}
    if len({model.settings.cache for model in models}) > 1:
        # Some have replaced its files, and others not yet: nobody knows of which build an answer is.
        config.pop("cache", None)
    config.pop("canary", None)
    route = ledger.routes.by_model.get(name)
    if route is not None and route.settings.canary is not None:
        config["canary"] = to_builtins(route.settings.canary)
    found.pop("config", None)
    return found | ({"config": config} if config else {})


def describe_status(ledger: Ledger, now: float, allows: Allows, ways: Ways | None = None) -> dict[str, object]:
    """The reply to Query "status", for the models that the asking key is for. Times are in seconds. `ways`: how peers
    are connected, if that is known.

    Of very many versions only those have statistics that had requests: all would be larger than an Answer may be.
    """
    counts, scheduler = ledger.counts, ledger.scheduler
    queued, running = waiting(ledger), holding(ledger)
    served, known = served_versions(scheduler), ledger.statistics.versions
    all_fit = len(served) <= MOST_VERSIONS

    def counted(name: str, version: int) -> dict[str, object]:
        return {
            **_statistics(known.get((name, version)) or VersionStatistics()),
            "queued": queued[name, version],
            "outstanding": queued[name, version] + running[name, version],
        }

    return {
        "uptime": now - ledger.started,
        "stopping": ledger.stopping,
        "process": ledger.process,
        "restarts": ledger.restarts,
        "requests": {
            "accepted": ledger.accepted,
            "outstanding": len(ledger.requests),
            "queued": scheduler.queued,
            "queued_bytes": scheduler.queued_bytes,
            "served": ledger.served,
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
                **_routed(ledger, name, version),
                "slots": sum(ledger.workers[peer].slots for peer in pool.runs),
                "of_workers": len(scheduler.holders[name]),
                "of_slots": sum(worker.slots for worker in scheduler.holders[name].values()),
                **({"statistics": counted(name, version)} if all_fit or (name, version) in known else {}),
            }
            for (name, version, _), pool in served
            if allows(name)
        ],
        "queues": [
            {"model": name, "version": max(0, version), "queued": len(queue), "bytes": queue.nbytes}
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
                "device": worker.device,
                "memory_bytes": worker.memory_bytes,
                **({} if worker.gpu is None else {"gpu": to_builtins(worker.gpu)}),
                "restarts": worker.restarts,
                "busy": worker.busy_us / 1e6,
                "takes": {
                    f"{name}:{version}": pace.each
                    for (name, version), pace in sorted(worker.paces.items())
                    if (name, version) in worker.models and allows(name)
                },
                "running": [f"{name}:{version}" for name, version in sorted(_held(worker)) if allows(name)],
                **({} if ways is None else way_of_worker(ways, worker.peer)),
            }
            for worker in ledger.workers.values()
        ],
        **({} if ways is None else others(ways)),
        "slow": [
            {
                "model": slow.model,
                "version": slow.version,
                "worker": slow.worker,
                "ago": now - slow.ended_at,
                "queue": slow.queue,
                "compute": slow.compute,
                "total": slow.total,
                "attempts": slow.attempts,
                "status": slow.status,
                "key": slow.key,
            }
            for slow in ledger.statistics.slow(now)
            if allows(slow.model)
        ],
    }


def _routed(ledger: Ledger, name: str, version: int) -> dict[str, object]:
    """The labels of a version, and its trial if it is a canary."""
    route = ledger.routes.by_model.get(name)
    found: dict[str, object] = {"labels": ledger.routes.labels_of(name, version)}
    if route is not None and route.trial is not None and route.trial.canary.version == version:
        trial = route.trial
        found["canary"] = {"share": trial.canary.share, "returned": trial.returned, **trial.counts()}
    return found


def waiting(ledger: Ledger) -> Counter[tuple[str, int]]:
    """The queued requests by model and version; under ("", 0) those for what no worker ever had.

    This and `holding` copy each table at once, so that another thread may call them.
    """
    queued: Counter[tuple[str, int]] = Counter()
    for wanted, queue in list(ledger.scheduler.queues.items()):
        version = ledger.version_of(wanted)
        queued[(wanted.model, version) if version else ("", 0)] += len(queue)
    return queued


def holding(ledger: Ledger) -> Counter[tuple[str, int]]:
    """The requests that workers hold and somebody waits for, by model and version."""
    return Counter(
        request.runs_as
        for worker in list(ledger.workers.values())
        for (_, _, attempt), request in list(worker.held.items())
        if ledger.awaits(worker, request, attempt)
    )


def _held(worker: Worker) -> set[tuple[str, int]]:
    return {request.runs_as for request in worker.held.values()}


def _statistics(version: VersionStatistics) -> dict[str, object]:
    return {
        "requests": version.requests,
        "queue": version.queue.buckets().body(),
        "compute": version.compute.buckets().body(),
        "total": version.total.buckets().body(),
        "batch": version.batch.buckets().body(),
        "rows": version.rows,
        "bytes_in": version.bytes_in,
        "bytes_out": version.bytes_out,
    }


def _by_code(counts: dict[str, int], prefix: str) -> dict[str, int]:
    return {name[len(prefix) :]: count for name, count in sorted(counts.items()) if name.startswith(prefix)}
