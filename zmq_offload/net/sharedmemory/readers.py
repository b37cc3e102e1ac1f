"""The arenas of other processes, as this one reads them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from zmq_offload.net.sharedmemory import layout, segment
from zmq_offload.net.sharedmemory.references import Reference
from zmq_offload.net.sharedmemory.segment import Unreadable, Use

_MOST = 256
"""Arenas that are mapped at once, besides those that are being read."""

IDLE = 10.0
"""Seconds after which an arena that is not read is unmapped: its owner may have ended."""

_Key: TypeAlias = tuple[int, int, bytes]
"""Process id, descriptor and cookie of an arena."""


class Readers:
    """Maps arenas when they are first read, and unmaps those that are not read for long. `note` is told how many bytes
    are mapped when that changes."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, note: Callable[[int], object] = lambda _: None
    ) -> None:
        self._clock = clock
        self._note = note
        self._mapped: dict[_Key, _Mapping] = {}

    def __len__(self) -> int:
        return len(self._mapped)

    def secret_of(self, pid: int, fd: int, cookie: bytes) -> bytes | None:
        """The secret of an arena. None if this process may not read it."""
        try:
            return self._mapping((pid, fd, cookie)).secret
        except Unreadable:
            return None

    def read(self, reference: Reference) -> memoryview:
        """The bytes of a reference, which stay as they are until nothing refers to them any more. Raises Unreadable."""
        mapping = self._mapping(reference[:3])
        mapping.used_at = self._clock()
        return mapping.read(reference)

    def use_of(self, pid: int, fd: int, cookie: bytes) -> Use | None:
        """How an arena is used. None if this process may not read it."""
        try:
            return self._mapping((pid, fd, cookie)).use()
        except Unreadable:
            return None

    def tick(self) -> None:
        """To be called every few seconds. What is being read stays mapped."""
        before = self._clock() - IDLE
        idle = [key for key, mapping in self._mapped.items() if mapping.used_at < before]
        for key in idle:
            del self._mapped[key]
        if idle:
            self._note_mapped()

    def _note_mapped(self) -> None:
        self._note(sum(mapping.size for mapping in self._mapped.values()))

    def _mapping(self, key: _Key) -> _Mapping:
        mapping = self._mapped.get(key)
        if mapping is None:
            mapping = _Mapping(*key, self._clock())
            while len(self._mapped) >= _MOST:
                del self._mapped[min(self._mapped, key=lambda key: self._mapped[key].used_at)]
            self._mapped[key] = mapping
            self._note_mapped()
        return mapping


class _Mapping:
    """One arena. Raises Unreadable if it is not the one with this cookie."""

    def __init__(self, pid: int, fd: int, cookie: bytes, now: float) -> None:
        self.fd, size = segment.open_of(pid, fd)
        self.used_at = now
        try:
            self._heads = segment.map_heads(self.fd)
            head = layout.read_head(self._heads, size)
            if head is None or head[0] != cookie:
                raise Unreadable(f"descriptor {fd} of process {pid} is another arena")
            self.secret = head[1]
            self._data = segment.map_data(self.fd, size, writable=False)
            self.size = size - layout.DATA_AT
        except (OSError, ValueError) as error:  # no memory for it
            raise Unreadable(f"descriptor {fd} of process {pid} cannot be mapped: {error}") from None
        self._pins = itertools.count()

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def use(self) -> Use:
        return segment.use_of(self.fd, self._heads, self.size)

    def read(self, reference: Reference) -> memoryview:
        cell, start, nbytes = reference.cell, reference.start, reference.nbytes
        pin = _Pin(self, cell, next(self._pins) % segment.PINS)
        head = layout.read_cell(self._heads, cell)
        if (
            head.generation != reference.generation
            or start < head.start
            or start + nbytes > min(head.start + head.nbytes, len(self._data))
        ):
            raise Unreadable(f"cell {cell} of process {reference.pid} has other bytes by now")
        layout.mark_seen(self._heads, cell)
        tensor = _Tensor((nbytes,), np.uint8, self._data, start)
        tensor.pin = pin
        data: memoryview = tensor.data
        return data


class _Pin:
    """Keeps the bytes of a cell as they are. Raises Unreadable if its owner is about to use it again."""

    __slots__ = ("_cell", "_mapping", "_number", "_pid")

    def __init__(self, mapping: _Mapping, cell: int, number: int) -> None:
        self._pid = 0
        if not segment.pin(mapping.fd, cell, number):
            raise Unreadable(f"cell {cell} is used again")
        self._pid = os.getpid()
        self._mapping, self._cell, self._number = mapping, cell, number

    def __del__(self) -> None:
        if self._pid == os.getpid():  # a forked child must not give up its parent's lock
            segment.unpin(self._mapping.fd, self._cell, self._number)


class _Tensor(np.ndarray[Any, np.dtype[np.uint8]]):
    """Pinned bytes. What views them keeps them, as with the memory of an `Arena`."""

    pin: _Pin
