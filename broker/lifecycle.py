"""The lives of a request and of a worker at the broker, as tables, and the story of what happened in them.

    accepted ──queued──► QUEUED ──dispatched──► HELD ──served, failed──► ENDED
        ▲                   │                    │
        │                   └─ expired, ... ─► ENDED ◄── expired, cancelled, stopped
        └────────── lost (its worker), returned ─┘

What is not in a table is a fault of the broker's; the step raises KeyError then, and nothing goes on quietly.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable


class RequestState(enum.Enum):
    """Where a request is."""

    __hash__ = object.__hash__  # enum's own is a function in Python, called at each step of each request

    ACCEPTED = "accepted"
    """To be placed, now or again; never between two events."""
    QUEUED = "queued"
    HELD = "held by a worker"
    ENDED = "ended"
    """It had its one terminal reply."""


class WorkerState(enum.Enum):
    """What a worker may be given."""

    READY = "ready"
    QUIET = "quiet"
    """Idle and silent for too long: nothing, until it is heard again."""
    DRAINING = "draining"
    """Nothing more; it finishes what it holds."""
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
        "expired": RequestState.ENDED,
        "cancelled": RequestState.ENDED,
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
        "cancelled": RequestState.ENDED,
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
    """The last steps of all requests and workers: for a person who asks why."""

    def __init__(self, length: int = 10_000) -> None:
        self._steps: deque[tuple[float, Hashable, str, object]] = deque(maxlen=length)

    def add(self, now: float, subject: Hashable, event: str, detail: object = "") -> None:
        self._steps.append((now, subject, event, detail))

    def of(self, subject: Hashable, since: float = 0.0) -> list[str]:
        """One line for each step of a request (by its Key) or of a worker (by its peer)."""
        return [
            f"{now - since:9.3f}  {event}" + (f": {detail}" if detail != "" else "")
            for now, whose, event, detail in self._steps
            if whose == subject
        ]
