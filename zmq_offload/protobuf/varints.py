"""Numbers of protocol buffers. Pure.

A byte of a number has seven bits, the lowest first; its eighth bit says whether another byte follows. A field is a tag
(its number and wire type) and a value. See https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zmq_offload.protocol.payload import Buffer
from zmq_offload.protocol.tensors import DType

_LONGEST = 10
"""Bytes of a number. Bits above the 64th are dropped."""

_CHUNK = 1 << 20
"""Bytes that are decoded at once: NumPy's indices take many times their memory."""


def varint(value: int) -> bytes:
    """A number from 0 to 2**64 - 1, as bytes."""
    if value < 0x80:
        return bytes((value,))
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def field(tag: int, value: bytes) -> bytes:
    """A field with a length: a tag of one byte, and bytes."""
    return bytes((tag,)) + varint(len(value)) + value


def length_at(data: Buffer, at: int) -> tuple[int, int]:
    """The length that begins at an offset, and the offset after it. Raises ValueError, or IndexError at the end."""
    value = shift = 0
    while (byte := data[at]) >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 28:
            raise ValueError("a length has at most five bytes")
    return value | byte << shift, at + 1


def packed(data: Buffer, dtype: DType) -> npt.NDArray[np.generic]:
    """The numbers that follow each other in a buffer, as bool or integers of 32 or 64 bits. Raises ValueError."""
    whole = np.frombuffer(data, np.uint8)
    chunks = [np.empty(0, dtype)]
    at = 0
    while at < whole.size:
        chunk = whole[at : at + _CHUNK]
        ends = np.flatnonzero(chunk < 0x80)
        if not ends.size:
            raise ValueError("a number does not end")
        chunks.append(_decoded(chunk, ends, dtype))
        at += int(ends[-1]) + 1
    return np.concatenate(chunks)


def _decoded(chunk: npt.NDArray[np.uint8], ends: npt.NDArray[np.intp], dtype: DType) -> npt.NDArray[np.generic]:
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    values = (chunk[starts] & 0x7F).astype(np.uint64)
    for more in range(1, _LONGEST + 1):
        longer = np.flatnonzero(ends - starts >= more)
        if not longer.size:
            return values.astype(bool) if dtype.kind == "b" else values.astype(dtype)
        values[longer] |= (chunk[starts[longer] + more] & 0x7F).astype(np.uint64) << np.uint64(7 * more)
    raise ValueError(f"a number has more than {_LONGEST} bytes")
