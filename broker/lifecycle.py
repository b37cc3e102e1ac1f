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


class Life(enum.Enum):
    """Where a request is."""

    __hash__ = object.__hash__  # enum's own is a function in Python, called at each step of each request

    ACCEPTED = "accepted"
    """To be placed, now or again; never between two events."""
    QUEUED = "queued"
    HELD = "held by a worker"
    ENDED = "ended"
    """It had its one terminal reply."""


class Duty(enum.Enum):
    """What a worker may be given."""

    READY = "ready"
    QUIET = "quiet"
    """Idle and silent for too long: nothing, until it is heard again."""
    DRAINING = "draining"
    """Nothing more; it finishes what it holds."""
    GONE = "gone"


REQUEST: dict[Life, dict[str, Life]] = {
    Life.ACCEPTED: {
        "queued": Life.QUEUED,
        "dispatched": Life.HELD,
        "given up": Life.ENDED,
        "too large": Life.ENDED,
    },
    Life.QUEUED: {
        "dispatched": Life.HELD,
        "expired": Life.ENDED,
        "cancelled": Life.ENDED,
        "evicted": Life.ENDED,
        "too large": Life.ENDED,
        "unserved": Life.ENDED,
        "stopped": Life.ENDED,
        "revoked": Life.ENDED,
    },
    Life.HELD: {
        "served": Life.ENDED,
        "failed": Life.ENDED,
        "expired": Life.ENDED,
        "cancelled": Life.ENDED,
        "stopped": Life.ENDED,
        "revoked": Life.ENDED,
        "lost": Life.ACCEPTED,
        "returned": Life.ACCEPTED,
    },
    Life.ENDED: {},
}

WORKER: dict[Duty, dict[str, Duty]] = {
    Duty.READY: {"silent": Duty.QUIET, "goodbye": Duty.DRAINING, "lost": Duty.GONE},
    Duty.QUIET: {"heard": Duty.READY, "goodbye": Duty.DRAINING, "lost": Duty.GONE},
    Duty.DRAINING: {"goodbye": Duty.DRAINING, "lost": Duty.GONE},
    Duty.GONE: {},
}


class Story:
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
