"""The states and transitions of requests and workers, as tables, and the history of transitions. Pure.

    accepted ──queued──► QUEUED ──dispatched──► HELD ──served, failed──► ENDED
        ▲                   │                    │
        │                   └─ expired, ... ─► ENDED ◄── expired, canceled, stopped
        └────────── lost (its worker), returned ─┘

A transition that is not in a table is a bug of the broker; it raises KeyError.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable


class RequestState(enum.Enum):
    """The state of a request."""

    __hash__ = object.__hash__  # enum's own is written in Python, and each transition calls it

    ACCEPTED = "accepted"
    """To be placed, for the first time or again; no request has this state between two events."""
    QUEUED = "queued"
    HELD = "held by a worker"
    ENDED = "ended"
    """Its one terminal reply was sent."""


class WorkerState(enum.Enum):
    """The state of a worker."""

    READY = "ready"
    QUIET = "quiet"
    """Idle and silent for too long: it gets no requests until it is heard again."""
    DRAINING = "draining"
    """It finishes what it holds and gets no more requests."""
    GONE = "gone"


REQUEST_TRANSITIONS: dict[RequestState, dict[str, RequestState]] = {
    RequestState.ACCEPTED: {
        "queued": RequestState.QUEUED,
        "dispatched": RequestState.HELD,
        "given up": RequestState.ENDED,
        "too large": RequestState.ENDED,
    },
    RequestState.QUEUED: {
        "dispatched": RequestState.HELD,
        "moved": RequestState.QUEUED,
        "expired": RequestState.ENDED,
        "canceled": RequestState.ENDED,
        "evicted": RequestState.ENDED,
        "too large": RequestState.ENDED,
        "unserved": RequestState.ENDED,
        "stopped": RequestState.ENDED,
        "revoked": RequestState.ENDED,
    },
    RequestState.HELD: {
        "served": RequestState.ENDED,
        "failed": RequestState.ENDED,
        "expired": RequestState.ENDED,
        "canceled": RequestState.ENDED,
        "stopped": RequestState.ENDED,
        "revoked": RequestState.ENDED,
        "lost": RequestState.ACCEPTED,
        "returned": RequestState.ACCEPTED,
    },
    RequestState.ENDED: {},
}

WORKER_TRANSITIONS: dict[WorkerState, dict[str, WorkerState]] = {
    WorkerState.READY: {"silent": WorkerState.QUIET, "goodbye": WorkerState.DRAINING, "lost": WorkerState.GONE},
    WorkerState.QUIET: {"heard": WorkerState.READY, "goodbye": WorkerState.DRAINING, "lost": WorkerState.GONE},
    WorkerState.DRAINING: {"goodbye": WorkerState.DRAINING, "lost": WorkerState.GONE},
    WorkerState.GONE: {},
}


class History:
    """The last transitions of all requests and workers, for debugging."""

    def __init__(self, length: int = 10_000) -> None:
        self._steps: deque[tuple[float, Hashable, str, object]] = deque(maxlen=length)

    def add(self, now: float, subject: Hashable, event: str, detail: object = "") -> None:
        self._steps.append((now, subject, event, detail))

    def of(self, subject: Hashable, since: float = 0.0) -> list[str]:
        """A line for each event of a request (its Key) or a worker (its peer)."""
        return [
            f"{now - since:9.3f}  {event}" + (f": {detail}" if detail != "" else "")
            for now, whose, event, detail in self._steps
            if whose == subject
        ]
