"""The bytes at the start of an arena: its head, and the heads of its cells. Pure.

All numbers are in the machine's own form, as nobody else reads them. One that is aligned is written at once: a reader
sees the old one or the new one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

COOKIE_BYTES = SECRET_BYTES = 16

_MAGIC = b"zmqoff01"
_HEAD = struct.Struct(f"@{len(_MAGIC)}s{COOKIE_BYTES}sQ{SECRET_BYTES}s")
_MAPPED_AT = _HEAD.size
_MAPPED = struct.Struct("@Q")
_CELLS_AT = 64
_CELL = struct.Struct("@QQQ")
_CELL_BYTES = 32
_NBYTES, _SEEN = 16, 24

COUNT = 4094
"""Cells of an arena."""

DATA_AT = _CELLS_AT + COUNT * _CELL_BYTES
"""Where the data of cells begin. A page of memory has at most 64 KiB, and 128 KiB is a multiple of any."""

MOST_BYTES = 2**46
"""The most that an arena has. More than any process can map is refused before it is tried."""


class CellHead(NamedTuple):
    """What a reader compares with its reference: the data from `start` on belong to this generation."""

    generation: int
    start: int
    nbytes: int


def write_head(memory: memoryview, cookie: bytes, data_bytes: int, secret: bytes) -> None:
    """Begin an arena. Only who can read it knows the secret."""
    _HEAD.pack_into(memory, 0, _MAGIC, cookie, data_bytes, secret)


def read_head(memory: memoryview, size: int) -> tuple[bytes, bytes] | None:
    """The cookie and the secret of an arena of `size` bytes in all. None if it is no arena."""
    magic, cookie, data_bytes, secret = _HEAD.unpack_from(memory)
    return (cookie, secret) if magic == _MAGIC and DATA_AT + data_bytes == size else None


def write_mapped(memory: memoryview, nbytes: int) -> None:
    """Note how much memory of others the owner has mapped."""
    _MAPPED.pack_into(memory, _MAPPED_AT, nbytes)


def read_mapped(memory: memoryview) -> int:
    """What `write_mapped` noted last."""
    (found,) = _MAPPED.unpack_from(memory, _MAPPED_AT)
    return int(found)


def lent_bytes(memory: memoryview) -> int:
    """The bytes of all cells of which others know."""
    return int(np.add.reduce(np.ndarray((COUNT,), np.uint64, memory, _CELLS_AT + _NBYTES, (_CELL_BYTES,))))


def write_cell(memory: memoryview, number: int, head: CellHead) -> None:
    """Begin a generation of a cell, which nobody has seen yet."""
    at = _CELLS_AT + number * _CELL_BYTES
    memory[at + _SEEN] = 0
    _CELL.pack_into(memory, at, *head)


def read_cell(memory: memoryview, number: int) -> CellHead:
    """What a cell has now."""
    return CellHead(*_CELL.unpack_from(memory, _CELLS_AT + number * _CELL_BYTES))


def mark_seen(memory: memoryview, number: int) -> None:
    """A reader came. It must have pinned the cell."""
    memory[_CELLS_AT + number * _CELL_BYTES + _SEEN] = 1


def is_seen(memory: memoryview, number: int) -> bool:
    """Whether a reader came in this generation."""
    return memory[_CELLS_AT + number * _CELL_BYTES + _SEEN] != 0
