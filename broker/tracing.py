"""What the broker notes of traced requests, and the spans that are made of it later. Pure.

A request that is not traced costs one look at its empty `trace` for each of its steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from broker.state import PendingRequest
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import Key
from zmq_offload.telemetry.traces import context
from zmq_offload.telemetry.traces.spans import NewId, Span

_OUTCOMES = frozenset({"served", "failed", "lost", "returned"})
"""Events that end an attempt by the worker's doing. All others revoke it."""


_BEGUN = 0x80
"""The flag of a trace that begins at this broker, which makes its first span, too."""

_GOLDEN = 0x9E3779B97F4A7D
"""2^56 divided by the golden ratio, and odd (Knuth, The Art of Computer Programming, 6.4)."""

_OTHER_BYTES = context.TRACE_ID_BYTES - context.RANDOM_BYTES + context.SPAN_ID_BYTES
"""Bytes of the ids of a trace and its first span, without the random part."""


class Step(NamedTuple):
    """A transition of a request. `version` is what its last attempt runs; `worker` is told with a dispatch."""

    at: float
    event: str
    worker: str
    version: int


class Record(NamedTuple):
    """All that is known of a traced request when it has ended. `rows` is 0 if nothing was served."""

    trace: bytes
    model: str
    accepted_at: float
    steps: list[Step]
    reply: wire.Result | wire.Error
    rows: int


class Tracing:
    """The traced requests of a broker."""

    def __init__(self) -> None:
        self.enabled = False
        self.share = 0.0
        self.steps: dict[Key, list[Step]] = {}
        """Of requests that have not ended."""
        self.rows: dict[Key, int] = {}
        """Of requests that end now, as their workers counted them."""
        self.ended: list[Record] = []
        """Is emptied by `take`."""

    @property
    def share(self) -> float:
        """Of the requests without a trace, how many begin one: 0 to 1."""
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        self._share, self._least = share, context.least_random(share)

    def wanted(self, trace: bytes, key: Key) -> bytes:
        """The trace of a new request; empty if no spans are made for it. Its caller decides, or else the share."""
        if len(trace) == wire.TRACE_BYTES:
            return context.joined(trace[:16], trace[16:24], context.SAMPLED) if context.sampled(trace) else b""
        # The session's token is random, so this is, too, and a request that is sent again has the same trace. A step of
        # the golden ratio spreads the numbers of a session evenly. It costs a fifth of a hash.
        session, number = key
        random = (int.from_bytes(session[-context.RANDOM_BYTES :], "big") + number * _GOLDEN) & context.RANDOM_MASK
        if random < self._least:
            return b""
        ids = hashlib.blake2b(session + number.to_bytes(8, "big"), digest_size=_OTHER_BYTES).digest()
        trace_id = ids[: -context.SPAN_ID_BYTES] + random.to_bytes(context.RANDOM_BYTES, "big")
        return trace_id + ids[-context.SPAN_ID_BYTES :] + bytes((context.SAMPLED | _BEGUN,))

    def step(self, request: PendingRequest, event: str, now: float, detail: object) -> None:
        """Note a transition of a traced request."""
        worker = str(detail) if event == "dispatched" else ""
        self.steps.setdefault(request.key, []).append(Step(now, event, worker, request.runs))

    def end(self, request: PendingRequest, reply: wire.Result | wire.Error) -> None:
        """A traced request has its reply."""
        steps, rows = self.steps.pop(request.key), self.rows.pop(request.key, 0)
        self.ended.append(Record(request.trace, request.wanted.model, request.accepted_at, steps, reply, rows))

    def take(self) -> list[Record]:
        """The requests that ended since the last call."""
        ended, self.ended = self.ended, []
        return ended


def spans_of(record: Record, new_id: NewId) -> Iterator[Span]:
    """The spans of a request: `queue` for each wait, `attempt` for each dispatch, `compute` in the last of these."""
    begun, worker, attempt = record.accepted_at, "", 0
    last = record.steps[-1]
    if record.trace[-1] & _BEGUN:
        yield _first(record, last)
    for step in record.steps:
        if step.event == "queued":
            continue
        failed = record.reply if step is last and isinstance(record.reply, wire.Error) else None
        if not worker:
            yield _span(record, "queue", new_id(), begun, step.at, {}, failed)
        else:
            yield from _attempt(record, new_id, begun, step, worker, attempt, failed)
        begun, worker = step.at, step.worker
        attempt += bool(worker)


def _first(record: Record, last: Step) -> Span:
    """The span of a whole request whose trace begins here, as a gateway makes it."""
    failed = record.reply if isinstance(record.reply, wire.Error) else None
    code = "OK" if failed is None else failed.code
    attributes: dict[str, str | int] = {"rpc.system.name": "zmq_offload", "rpc.response.status_code": code}
    if last.version:
        attributes["zmq_offload.version"] = last.version
    number = context.span_id(record.trace)
    span = _span(record, f"infer {record.model}", number, record.accepted_at, last.at, attributes, failed)
    return span._replace(kind="server", parent=b"")


def _attempt(
    record: Record, new_id: NewId, begun: float, step: Step, worker: str, attempt: int, failed: wire.Error | None
) -> Iterator[Span]:
    number = new_id()
    outcome = step.event if step.event in _OUTCOMES else "revoked"
    attributes: dict[str, str | int] = {
        "zmq_offload.version": step.version,
        "zmq_offload.worker": worker,
        "zmq_offload.attempt": attempt,
        "zmq_offload.outcome": outcome,
    }
    if outcome == "served" and record.rows:
        attributes["zmq_offload.rows"] = record.rows
    span = _span(record, "attempt", number, begun, step.at, attributes, failed)
    if failed is None and outcome != "served":
        text = f"worker {worker} was lost" if outcome == "lost" else f"worker {worker} has this version no longer"
        span = span._replace(error=text, attributes={**span.attributes, "error.type": outcome})
    yield span
    if isinstance(record.reply, wire.Result) and outcome == "served":
        # Only its length is known. Half of the rest of the attempt may lie before it, and half after it.
        length = step.at - begun
        compute = min(record.reply.compute_us / 1e6, length)
        start = begun + (length - compute) / 2
        versioned: dict[str, str | int] = {"zmq_offload.version": step.version, "zmq_offload.worker": worker}
        yield _span(record, "compute", new_id(), start, start + compute, versioned, None)._replace(parent=number)


def _span(
    record: Record,
    name: str,
    number: bytes,
    start: float,
    end: float,
    attributes: dict[str, str | int],
    failed: wire.Error | None,
) -> Span:
    attributes = {"zmq_offload.model": record.model, **attributes}
    if failed is not None:
        attributes["error.type"] = failed.code
    trace, text = record.trace, "" if failed is None else failed.text or failed.code
    trace_id, parent = context.trace_id(trace), context.span_id(trace)
    return Span(name, "internal", trace_id, number, parent, start, end, attributes, text)
