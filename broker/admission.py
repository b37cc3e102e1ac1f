"""Which requests may wait. Pure.

Queues are bounded. When a bound is reached, each waiting client may have an equal part of it. A client with less than
its part takes a place from the client with the most, so that one that floods cannot keep the others out. A client is a
session, so that a program with many sessions has many parts; docs/security.md says how to prevent that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from broker.queues import Shares
from broker.scheduler import Scheduler
from broker.state import PendingRequest


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait."""

    max_queued: int = 8192
    """Requests in total."""
    max_queued_bytes: int = 1 << 30
    """Bytes of all requests."""
    max_queued_per_model: int = 4096
    """Requests for one model."""
    max_queued_per_client: int = 1024
    """Requests of one client for one model."""


class _Bound(NamedTuple):
    """A limit on the requests, or their bytes, in `shares`."""

    shares: Shares
    most: int
    by_bytes: bool
    text: str

    def exceeded(self, nbytes: int) -> bool:
        if self.by_bytes:
            return self.shares.nbytes + nbytes > self.most
        return self.shares.count + 1 > self.most

    def entitled(self, owner: bytes, nbytes: int) -> bool:
        """Whether a client has at most an equal part, this request included."""
        own = self.shares.of(owner)[self.by_bytes] + (nbytes if self.by_bytes else 1)
        return own * self.shares.clients_with(owner) <= self.most


def has_room(scheduler: Scheduler, bounds: QueueLimits, request: PendingRequest) -> bool:
    """Whether a request may wait and none has to give way to it: then the other two need not be asked."""
    shares, queue = scheduler.shares, scheduler.queues.get(request.wanted)
    if shares.count >= bounds.max_queued or shares.nbytes + request.nbytes > bounds.max_queued_bytes:
        return False
    if queue is None:
        return bounds.max_queued_per_client > 0
    own, _ = queue.shares.of(request.owner)
    return queue.shares.count < bounds.max_queued_per_model and own < bounds.max_queued_per_client


def refusal(scheduler: Scheduler, bounds: QueueLimits, request: PendingRequest) -> str | None:
    """Why a request may not wait; None if it may, after `evicted` made room."""
    queue = scheduler.queues.get(request.wanted)
    own = queue.shares.of(request.owner)[0] if queue else 0
    if own >= bounds.max_queued_per_client:
        return f"{own} requests of this client already wait for model {request.wanted.model!r}"
    for bound in _bounds(scheduler, bounds, request):
        if bound.exceeded(request.nbytes) and not bound.entitled(request.owner, request.nbytes):
            return bound.text
    return None


def evicted(scheduler: Scheduler, bounds: QueueLimits, request: PendingRequest) -> Iterator[PendingRequest]:
    """Choose the requests that give way to a request that is not refused.

    The caller removes each from its queue before it asks for the next.
    """
    while True:
        for bound in _bounds(scheduler, bounds, request):
            if bound.exceeded(request.nbytes):
                most = bound.shares.largest(by_bytes=bound.by_bytes)
                queue = scheduler.queues.get(request.wanted)
                here = queue is not None and bound.shares is queue.shares
                yield queue.last(most) if here and queue else scheduler.last_of(most)
                break
        else:
            return


def _bounds(scheduler: Scheduler, bounds: QueueLimits, request: PendingRequest) -> Iterator[_Bound]:
    queue = scheduler.queues.get(request.wanted)
    if queue is not None:
        text = f"{len(queue)} requests already wait for model {request.wanted.model!r}"
        yield _Bound(queue.shares, bounds.max_queued_per_model, False, text)
    shares = scheduler.shares
    yield _Bound(shares, bounds.max_queued, False, f"{shares.count} requests already wait")
    text = f"{shares.nbytes} bytes already wait; {request.nbytes} more exceed {bounds.max_queued_bytes}"
    yield _Bound(shares, bounds.max_queued_bytes, True, text)
