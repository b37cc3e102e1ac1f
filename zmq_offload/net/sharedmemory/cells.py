"""The cells of an arena: which are used, for what, and when they may be used again. Pure; the time is passed in."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

from zmq_offload.net.sharedmemory.spans import Spans

UNIT = 4096
"""Cells begin at multiples of this many bytes, and have a multiple of it."""

TAKE_BACK = 30.0
"""Seconds for which the receiver of a given cell may not have come. Messages take less, or are lost."""


class Cell:
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


class Cells:
    """At most `count` cells in `size` bytes."""

    def __init__(self, count: int, size: int) -> None:
        self._spans = Spans(size // UNIT)
        self._numbers = list(range(count - 1, -1, -1))  # free ones; the last is taken next
        self._generations = [0] * count
        self._starts: list[int] = []  # of used cells, in order
        self._used: dict[int, Cell] = {}  # by start
        self.waiting: deque[Cell] = deque()
        """Cells that their owner is done with, but perhaps not their readers."""
        self._peak = 0  # where the used memory ended at most, since the last `unneeded`
        self._top = 0  # where the memory ends that the kernel may have given

    def __len__(self) -> int:
        return len(self._used)

    def take(self, nbytes: int) -> Cell | None:
        """A new cell of `nbytes`, at least 1. None if there is no room."""
        if not self._numbers:
            return None
        units = -(-nbytes // UNIT)
        start = self._spans.take(units)
        if start is None:
            return None
        number = self._numbers.pop()
        start *= UNIT
        cell = self._used[start] = Cell(number, self._generations[number], start, nbytes)
        insort(self._starts, start)
        self._peak = max(self._peak, start + units * UNIT)
        return cell

    def free(self, cell: Cell) -> int:
        """Use a cell no more. Returns the generation that its number has from now on."""
        del self._used[cell.start]
        del self._starts[bisect_left(self._starts, cell.start)]
        self._spans.free(cell.start // UNIT, -(-cell.nbytes // UNIT))
        self._numbers.append(cell.number)
        self._generations[cell.number] += 1
        return self._generations[cell.number]

    def find(self, start: int, nbytes: int) -> Cell | None:
        """The cell that has the bytes from `start` on."""
        at = bisect_right(self._starts, start)
        if not at:
            return None
        cell = self._used[self._starts[at - 1]]
        return cell if start + nbytes <= cell.start + cell.nbytes else None

    def unneeded(self) -> tuple[int, int]:
        """Start and length of memory that was not used since the last call, but before. The kernel may have it."""
        start, stop = self._peak, max(self._top, self._peak)
        self._top = start
        last = self._used[self._starts[-1]] if self._starts else None
        self._peak = 0 if last is None else last.start + -(-last.nbytes // UNIT) * UNIT
        return start, stop - start
