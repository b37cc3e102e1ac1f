"""Deadlines by key, for sessions and the broker. The time is passed in."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

ROUNDING = 0.0005
"""Seconds that a timer of an event loop is set later: uvloop rounds delays to milliseconds. A timer that is early would
be set again and again until its time has come."""


class Timers(Generic[K]):
    """At most one deadline for each key. Finding the earliest is O(1), setting one is O(log n).

    A canceled or moved deadline leaves a stale entry in the heap. The heap is rebuilt when stale entries outnumber
    live ones; otherwise, at 20,000 requests/s, each request would stay in it until its deadline.
    """

    _SLACK = 64

    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self.first = inf
        """No key is due earlier; `next` finds out whether one is due then."""
        self._count = 0  # breaks ties, so that keys are never compared

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: K) -> bool:
        return key in self._at

    def set(self, key: K, at: float) -> None:
        """Set the deadline of `key`, in place of an earlier one."""
        known, heap = self._at, self._heap
        if known.get(key) == at:
            return
        known[key] = at
        if at < self.first:
            self.first = at
        self._count += 1
        heappush(heap, (at, self._count, key))
        if len(heap) > 2 * len(known) + self._SLACK:
            self._heap = [entry for entry in heap if known.get(entry[2]) == entry[0]]
            heapify(self._heap)

    def cancel(self, key: K) -> None:
        """Remove the deadline of `key`, if it has one."""
        self._at.pop(key, None)

    def next(self) -> float | None:
        """Return the earliest deadline, or None."""
        heap, known = self._heap, self._at
        while heap:
            at, _, key = heap[0]
            if known.get(key) == at:
                self.first = at
                return at
            heappop(heap)
        self.first = inf
        return None

    def pop(self, now: float) -> K | None:
        """Remove and return the earliest key that is due at `now`, or None."""
        at = self.next()
        if at is None or at > now:
            return None
        key = heappop(self._heap)[2]
        del self._at[key]
        return key
