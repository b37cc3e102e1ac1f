"""What the broker tells about itself, and what it reads of workers' descriptions. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from broker.lifecycle import Duty
from broker.state import Model, Payload, Wanted
from zmq_offload.errors import InvalidArgument, ProtocolError
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import LATEST, shown
from zmq_offload.protocol.payload import decode_body
from zmq_offload.protocol.tensors import TensorSpec, signature_of
from zmq_offload.repository import NAME_PATTERN
from zmq_offload.suggest import did_you_mean

if TYPE_CHECKING:
    from broker.ledger import Ledger
    from broker.versions import Pool


def parse_models(payload: Payload) -> dict[tuple[str, int], Model]:
    """(model, version) -> what an Announce's body says of it. Raises ProtocolError.

    The body is an array of maps with `name`, `version`, `inputs` and `outputs` (the tensors' signatures).
    """
    body = decode_body(payload, "an Announce")
    if type(body) is not list:
        raise ProtocolError("the body of an Announce is an array of models")
    models = {}
    for entry in body:
        if type(entry) is not dict:
            raise ProtocolError("a model in an Announce is a map")
        name, version = entry.get("name"), entry.get("version")
        if type(name) is not str or not NAME_PATTERN.fullmatch(name):
            raise ProtocolError(f"an announced model's name cannot be {shown(name)}")
        if type(version) is not int or not 0 < version <= limits.VERSION:
            raise ProtocolError(f"announced model {name!r}: its version cannot be {shown(version)}")
        inputs, outputs = (_tensors(name, entry.get(part)) for part in ("inputs", "outputs"))
        signature = signature_of(inputs, outputs)
        models[name, version] = Model(
            {
                "name": name,
                "version": version,
                "inputs": [tensor.to_json() for tensor in inputs],
                "outputs": [tensor.to_json() for tensor in outputs],
            },
            signature,
            (Wanted(name, version), Wanted(name), Wanted(name, LATEST, signature)),
        )
    return models


def _tensors(model: str, value: Any) -> list[TensorSpec]:
    if type(value) is not list or len(value) > limits.TENSORS:
        raise ProtocolError(f"announced model {model!r}: inputs and outputs are arrays of tensors")
    try:
        return [TensorSpec.from_json(tensor) for tensor in value]
    except InvalidArgument as error:
        raise ProtocolError(f"announced model {model!r}: {error.message}"[: limits.MESSAGE_CHARS]) from None


def describe_models(core: Ledger) -> list[dict[str, Any]]:
    """The body of the answer to Query "models": each (model, version) that a worker takes requests for."""
    return [
        pool.first[0].models[model, version].description | {"workers": len(pool.runs)}
        for (model, version, _), pool in _versions(core)
    ]


def _versions(core: Ledger) -> list[tuple[Wanted, Pool]]:
    """The versions that are served, by name and number."""
    return sorted(
        ((wanted, pool) for wanted, pool in core.scheduler.pools.items() if wanted.version != LATEST),
        key=lambda item: item[0],
    )


def describe_status(core: Ledger, now: float, allows: Callable[[str], bool]) -> dict[str, Any]:
    """The body of the answer to Query "status", of the models that the asking key is for. Times are in seconds."""
    counts, scheduler = core.counts, core.scheduler
    return {
        "uptime": now - core.started,
        "stopping": core.stopping,
        "requests": {
            "accepted": counts["accepted"],
            "outstanding": len(core.requests),
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
                "slots": sum(core.workers[peer].slots for peer in pool.runs),
                "of_workers": len(scheduler.holders[name]),
                "of_slots": sum(worker.slots for worker in scheduler.holders[name].values()),
            }
            for (name, version, _), pool in _versions(core)
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
                "state": worker.duty.value,
                "draining": worker.duty is Duty.DRAINING,
                "served": worker.served,
                "failed": worker.failed,
                "silent": now - worker.heard_at,
            }
            for worker in core.workers.values()
        ],
    }


def _by_code(counts: dict[str, int], prefix: str) -> dict[str, int]:
    return {name[len(prefix) :]: count for name, count in sorted(counts.items()) if name.startswith(prefix)}


def served_listing(core: Ledger, user: str, most: int = 20) -> str:
    """The models that are served, for a person who has the key `user`: "echo (version 1), ocr (versions 1, 2)"."""
    versions: dict[str, list[int]] = {}
    for (name, version, _), _ in _versions(core):
        if core.allows(user, name):
            versions.setdefault(name, []).append(version)
    names: Sequence[str] = [
        f"{name} (version{'s' * (len(own) > 1)} {', '.join(map(str, own))})" for name, own in versions.items()
    ]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more]) or "none"


def meant(core: Ledger, user: str, name: str) -> str:
    """The served model that was probably meant, as part of a message. Compares few and short names only: a comparison
    of long ones takes a millisecond, which a client that asks for nonsense must not get for each request."""
    served = {served for (served, _, _), _ in _versions(core) if core.allows(user, served)}
    alike = sorted(other for other in served if abs(len(other) - len(name)) <= 2 and len(other) <= 24)
    return did_you_mean(name, alike[:8]) if len(name) <= 24 else ""


def unfit(core: Ledger, name: str) -> str:
    """That no version of a model fits who asks for it, for a person."""
    versions = [
        f"version {version} takes {_signature(model, 'inputs')} and returns {_signature(model, 'outputs')}"
        for (served, version, _), pool in _versions(core)
        if served == name
        for model in [pool.first[0].models[name, version].description]
    ]
    return f"no version of model {name!r} that is served fits what was asked for: {'; '.join(reversed(versions))}"


def _signature(description: dict[str, Any], part: str) -> str:
    return ", ".join(str(TensorSpec.from_json(tensor)) for tensor in description[part]) or "nothing"
