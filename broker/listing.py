"""What is served and why a request is not, as text for messages. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from broker.catalog import Catalog
from broker.scheduler import Scheduler
from broker.state import PendingRequest, Wanted
from broker.versions import Pool
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.errors import Status
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import LATEST, NO_FITTING_VERSION, NO_HOLDER, SESSION_BYTES, Key
from zmq_offload.protocol.tensors import TensorSpec

NO_REQUEST = Key(bytes(SESSION_BYTES), 0)
"""The key of an Error that is not about one request."""

Allows: TypeAlias = Callable[[str], bool]
"""Whether a client's key is for a model."""


def served_versions(scheduler: Scheduler) -> list[tuple[Wanted, Pool]]:
    """The served versions, sorted by name and number."""
    return sorted(
        # The table is copied at once: the metrics are made in another thread.
        ((wanted, pool) for wanted, pool in list(scheduler.pools.items()) if wanted.version != LATEST),
        key=lambda item: item[0],
    )


def served_listing(scheduler: Scheduler, allows: Allows, most: int = 20) -> str:
    """The served models that a key is for, as text: "echo (version 1), ocr (versions 1, 2)"."""
    versions: dict[str, list[int]] = {}
    for (name, version, _), _ in served_versions(scheduler):
        if allows(name):
            versions.setdefault(name, []).append(version)
    names: Sequence[str] = [
        f"{name} (version{'s' * (len(own) > 1)} {', '.join(map(str, own))})" for name, own in versions.items()
    ]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more]) or "none"


def _suggestion(scheduler: Scheduler, allows: Allows, name: str) -> str:
    """The served model that was probably meant, as part of a message.

    It compares only a few short names. A comparison of long ones takes a millisecond, and a client could cause it with
    every request.
    """
    served = {served for (served, _, _), _ in served_versions(scheduler) if allows(served)}
    alike = sorted(other for other in served if abs(len(other) - len(name)) <= 2 and len(other) <= 24)
    return did_you_mean(name, alike[:8]) if len(name) <= 24 else ""


def newer_version(scheduler: Scheduler, name: str) -> str | None:
    """Why the newest version of a model is not the latest; None if it is."""
    newer = scheduler.newer(name)
    if newer is None:
        return None
    version, with_it, without = newer
    slots, more = sum(worker.slots for worker in with_it), sum(worker.slots for worker in without)
    have = f"{len(with_it)} of {len(with_it + without)} workers with {slots} of {slots + more} slots have it"
    return (
        f"model {name!r}: version {version} is not the latest yet; {have}, and it needs more than half of both. "
        f"Without it: {', '.join(worker.name for worker in without)}"
    )


def unserved(scheduler: Scheduler, catalog: Catalog, allows: Allows, wanted: Wanted) -> tuple[Status, str]:
    """The error of a request that no worker serves."""
    name, version, signature = wanted
    what = f"model {name!r}" + ("" if version == LATEST else f" version {version}")
    if not catalog:
        # Workers that load a large subgraph start more slowly than the broker.
        return Status.UNAVAILABLE, f"no worker has announced itself yet, so {what} is not served"
    if signature and scheduler.served(Wanted(name)):
        return Status.FAILED_PRECONDITION, _no_version_fits(scheduler, name)
    served = f"served are: {served_listing(scheduler, allows)}"
    if catalog.has(wanted):
        return Status.UNAVAILABLE, f"{NO_HOLDER} {what} is there now; {served}"
    return Status.NOT_FOUND, f"no worker ever announced {what}; {served}{_suggestion(scheduler, allows, name)}"


def _no_version_fits(scheduler: Scheduler, name: str) -> str:
    """The message that no served version of a model has the signature that was asked for."""
    versions = [
        f"version {version} takes {_tensors(description['inputs'])} and returns {_tensors(description['outputs'])}"
        for (served, version, _), pool in served_versions(scheduler)
        if served == name
        for description in [pool.first[0].models[name, version].description]
    ]
    return f"{NO_FITTING_VERSION} {name!r} fits the signature that was asked for: {'; '.join(reversed(versions))}"


def _tensors(specs: list[dict[str, object]]) -> str:
    return ", ".join(str(TensorSpec.from_json(spec)) for spec in specs) or "nothing"


def too_large(request: PendingRequest, most: int, own: int) -> str:
    """That no worker takes the frames of a request: they take `most` bytes, this broker `own`."""
    return (
        f"the inputs have a frame of {request.longest} bytes; the workers of {request.wanted.model!r} take at most "
        f"{most} (their --max-frame-bytes), this broker {own}"
    )


def error_of(key: tuple[bytes, int], status: Status, text: str) -> wire.Error:
    return wire.Error(*key, status.value, text[: limits.MESSAGE_CHARS])


def at(address: str) -> str:
    """An address as a part of a message."""
    return f" at {address}" if address else ""
