"""The slots of an arena: which are used, for what, and when they may be used again. Pure; the time is passed in."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

from zmq_offload.net.sharedmemory.spans import Spans

UNIT = 4096
"""Slots begin at multiples of this many bytes, and have a multiple of it."""

TAKE_BACK = 30.0
"""Seconds for which the receiver of a given slot may not have come. Messages take less, or are lost."""


class Slot:
    """A part of an arena that is used. `start` is an offset in the arena's data."""

    __slots__ = ("generation", "given_at", "nbytes", "number", "shared", "start")

    def __init__(self, number: int, generation: int, start: int, nbytes: int) -> None:
        self.number = number
        self.generation = generation
        self.start = start
        self.nbytes = nbytes
        self.shared = False
        """Whether a reference to it was sent. Nobody else can know of it before."""
        self.given_at: float | None = None
        """When it was given away; None if it is lent."""

    def may_be_taken_back(self, seen: bool, now: float) -> bool:
        """Whether it may be used again if nobody has pinned it. `seen`: somebody has, before."""
        return self.given_at is None or seen or now >= self.given_at + TAKE_BACK


class Slots:
    """At most `count` slots in `size` bytes."""

    def __init__(self, count: int, size: int) -> None:
        self._spans = Spans(size // UNIT)
        self._numbers = list(range(count - 1, -1, -1))  # free ones; the last is taken next
        self._generations = [0] * count
        self._starts: list[int] = []  # of used slots, in order
        self._used: dict[int, Slot] = {}  # by start
        self.waiting: deque[Slot] = deque()
        """Slots that their owner is done with, but perhaps not their readers."""
        self._peak = 0  # where the used memory ended at most, since the last `unneeded`
        self._top = 0  # where the memory ends that the kernel may have given

    def __len__(self) -> int:
        return len(self._used)

    def take(self, nbytes: int) -> Slot | None:
        """A new slot of `nbytes`, at least 1. None if there is no room."""
        if not self._numbers:
            return None
        units = -(-nbytes // UNIT)
        start = self._spans.take(units)
        if start is None:
            return None
        number = self._numbers.pop()
        start *= UNIT
        slot = self._used[start] = Slot(number, self._generations[number], start, nbytes)
        insort(self._starts, start)
        self._peak = max(self._peak, start + units * UNIT)
        return slot

    def free(self, slot: Slot) -> int:
        """Use a slot no more. Returns the generation that its number has from now on."""
        del self._used[slot.start]
        del self._starts[bisect_left(self._starts, slot.start)]
        self._spans.free(slot.start // UNIT, -(-slot.nbytes // UNIT))
        self._numbers.append(slot.number)
        self._generations[slot.number] += 1
        return self._generations[slot.number]

    def find(self, start: int, nbytes: int) -> Slot | None:
        """The slot that has the bytes from `start` on."""
        at = bisect_right(self._starts, start)
        if not at:
            return None
        slot = self._used[self._starts[at - 1]]
        return slot if start + nbytes <= slot.start + slot.nbytes else None

    def unneeded(self) -> tuple[int, int]:
        """Start and length of memory that was not used since the last call, but before. The kernel may have it."""
        start, stop = self._peak, max(self._top, self._peak)
        self._top = start
        last = self._used[self._starts[-1]] if self._starts else None
        self._peak = 0 if last is None else last.start + -(-last.nbytes // UNIT) * UNIT
        return start, stop - start
