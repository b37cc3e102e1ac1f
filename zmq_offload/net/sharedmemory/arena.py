"""A process's own memory for the tensors that it sends. It belongs to one thread; memory may be dropped in any."""

from __future__ import annotations

import math
import mmap
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from zmq_offload.net.sharedmemory import layout, segment
from zmq_offload.net.sharedmemory.cells import UNIT, Cell, Cells
from zmq_offload.net.sharedmemory.layout import CellHead
from zmq_offload.net.sharedmemory.references import Reference

_LOOKS = 4
"""Waiting cells that are looked at for each cell that is taken."""

LOOK_AGAIN = 0.02
"""Seconds between two looks at all waiting cells of a full arena. There may be thousands, and the bytes can be sent."""

TRIM = 5.0
"""Seconds after which memory that is not used any more goes back to the kernel."""

_PAGE = mmap.PAGESIZE
"""The kernel takes whole pages. They may be larger than the units of cells."""


class _Memory(np.ndarray[Any, np.dtype[np.uint8]]):
    """The memory of a cell, made from the map and not from another array: NumPy lets views keep only the first array
    of a chain, and they are to keep the lease."""

    lease: _Lease


class _Lease:
    """Tells the arena when nothing here refers to the memory of a cell any more."""

    __slots__ = ("_cell", "_done")

    def __init__(self, cell: Cell, done: deque[Cell]) -> None:
        self._cell = cell
        self._done = done

    def __del__(self) -> None:
        self._done.append(self._cell)  # perhaps in another thread, or within `take`


def _address(data: Any) -> int:
    # Half the cost of `.ctypes.data`.
    start: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return start


class Arena:
    """At most `size` bytes, of which the kernel gives those that are used. Raises OSError if it gives none."""

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        size = max(size - size % UNIT, UNIT)
        self._clock = clock
        self._pid = os.getpid()
        self.fd = segment.make(layout.DATA_AT + size)
        self.cookie = os.urandom(layout.COOKIE_BYTES)
        self.secret = os.urandom(layout.SECRET_BYTES)
        self._heads = segment.map_heads(self.fd)
        layout.write_head(self._heads, self.cookie, size, self.secret)
        self._map = segment.map_data(self.fd, layout.DATA_AT + size, writable=True)
        self._data = np.frombuffer(self._map, np.uint8)
        self._start = _address(self._data)
        self._cells = Cells(layout.COUNT, size)
        self._done: deque[Cell] = deque()
        self._look_at = -math.inf  # when a full arena is looked through again
        self._trim_at = clock() + TRIM
        self.size = size

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    @property
    def used(self) -> int:
        """Cells that are used, by this process or by readers."""
        return len(self._cells)

    @property
    def unread(self) -> bool:
        """Whether something was given to a receiver that has not come yet."""
        heads = self._heads
        return any(cell.given_at is not None and not layout.is_seen(heads, cell.number) for cell in self._cells.waiting)

    def use(self) -> segment.Use:
        """How it is used."""
        return segment.use_of(self.fd, self._heads, self.size)

    def note_mapped(self, nbytes: int) -> None:
        """Note for all who can read this arena how much memory of others its owner has mapped."""
        if os.getpid() == self._pid:
            layout.write_mapped(self._heads, nbytes)

    def take(self, nbytes: int) -> memoryview | None:
        """Memory for `nbytes`, until nothing here refers to it any more. None if there is no room."""
        cell = self._take(nbytes)
        if cell is None:
            return None
        memory = _Memory((nbytes,), np.uint8, self._map, cell.start)
        memory.lease = _Lease(cell, self._done)
        data: memoryview = memory.data
        return data

    def give(self, data: bytes | memoryview) -> Reference | None:
        """A reference to a copy of `data`, until its receiver has read it. None if there is no room."""
        nbytes = len(data)
        cell = self._take(nbytes)
        if cell is None:
            return None
        self._data[cell.start : cell.start + nbytes] = np.frombuffer(data, np.uint8)
        cell.given_at = self._clock()
        self._cells.waiting.append(cell)
        return self._share(cell, cell.start, nbytes)

    def has(self, data: bytes | memoryview) -> bool:
        """Whether `data` lies here."""
        return type(data) is not bytes and 0 <= _address(data) - self._start < self.size

    def find(self, data: memoryview) -> Reference | None:
        """A reference to `data`, if it lies in memory that was taken. It holds until that is dropped."""
        start = _address(data) - self._start
        if not 0 <= start < self.size or os.getpid() != self._pid:
            return None
        cell = self._cells.find(start, len(data))
        return None if cell is None else self._share(cell, start, len(data))

    def tick(self) -> None:
        """To be called every few seconds: nothing may be taken for a long time."""
        if os.getpid() == self._pid:
            self._look(len(self._cells.waiting) + len(self._done))
            self._trim(self._clock())

    def _take(self, nbytes: int) -> Cell | None:
        if os.getpid() != self._pid or not 0 < nbytes <= self.size:
            return None
        self._look(_LOOKS)
        cell = self._cells.take(nbytes)
        if cell is None and (now := self._clock()) >= self._look_at:
            self._look_at = now + LOOK_AGAIN
            self._look(len(self._cells.waiting))
            cell = self._cells.take(nbytes)
        return cell

    def _share(self, cell: Cell, start: int, nbytes: int) -> Reference:
        if not cell.shared:
            cell.shared = True
            layout.write_cell(self._heads, cell.number, CellHead(cell.generation, cell.start, cell.nbytes))
        return Reference(self._pid, self.fd, self.cookie, cell.number, cell.generation, start, nbytes)

    def _look(self, most: int) -> None:
        """Free dropped cells that nobody knows of, and at most so many of those that somebody may read."""
        done, waiting = self._done, self._cells.waiting
        while done:
            cell = done.popleft()
            if cell.shared:
                waiting.appendleft(cell)
            else:
                self._cells.free(cell)
        now = self._clock() if waiting else 0.0
        for _ in range(min(most, len(waiting))):
            cell = waiting.popleft()
            if not self._free(cell, now):
                waiting.append(cell)

    def _free(self, cell: Cell, now: float) -> bool:
        """Free a cell, if nobody reads it or is still to read it."""
        number, heads = cell.number, self._heads
        if not cell.may_be_taken_back(layout.is_seen(heads, number), now) or not segment.claim(self.fd, number):
            return False
        layout.write_cell(heads, number, CellHead(self._cells.free(cell), 0, 0))
        segment.unclaim(self.fd, number)
        return True

    def _trim(self, now: float) -> None:
        if now >= self._trim_at:
            self._trim_at = now + TRIM
            start, length = self._cells.unneeded()
            stop = (start + length) // _PAGE * _PAGE
            start = -(-start // _PAGE) * _PAGE
            if start < stop:
                self._map.madvise(mmap.MADV_REMOVE, start, stop - start)
