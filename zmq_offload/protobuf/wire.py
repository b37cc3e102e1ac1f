"""Reads messages of protocol buffers field by field, where an object of protobuf would cost too much. Pure.

See https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

Field: TypeAlias = "tuple[int, int | memoryview]"
"""A tag (the field's number times 8, plus its wire type), and a number, or the bytes of the value."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

FIELDS = 4096
"""Fields of one message. Who sends more has no tensors to send, but wants to keep its reader busy."""

_LONGEST = 10
"""Bytes of a number. Bits above the 64th are dropped."""

_SIZES = {FIXED64: 8, FIXED32: 4}


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, in their order. Raises ValueError for bytes that are no message, and for too many."""
    at, size, count = 0, len(message), 0
    while at < size:
        count += 1
        if count > FIELDS:
            raise ValueError(f"a message has more than {FIELDS} fields")
        tag, at = number(message, at)
        wire = tag & 7
        if not 0 < tag >> 3 < 1 << 29:
            raise ValueError(f"a field has the number {tag >> 3}")
        if wire == VARINT:
            value, at = number(message, at)
            yield tag, value
            continue
        if wire == BYTES:
            length, at = number(message, at)
        elif wire in _SIZES:
            length = _SIZES[wire]
        else:
            raise ValueError(f"a field has the wire type {wire}")
        if length > size - at:
            raise ValueError(f"a field of {length} bytes is cut off")
        yield tag, message[at : at + length]
        at += length


def number(message: memoryview, at: int) -> tuple[int, int]:
    """The number from 0 to 2**64 - 1 at an offset, and the offset after it. Raises ValueError."""
    value = shift = 0
    for byte in message[at : at + _LONGEST]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value & (1 << 64) - 1, at + shift // 7
    raise ValueError("a number is cut off or too long")


def signed(value: int) -> int:
    """A number of a field of type int64."""
    return value - (1 << 64) if value >> 63 else value


def text(value: int | memoryview) -> str:
    """A string. Raises ValueError."""
    return str(view(value), "utf-8")


def view(value: int | memoryview) -> memoryview:
    """The bytes of a field that has some. The caller knows that from its tag."""
    assert isinstance(value, memoryview)
    return value


def integers(value: int | memoryview, most: int) -> list[int]:
    """The numbers of a repeated field of int64: one, or several that are packed. Raises ValueError beyond `most`."""
    if isinstance(value, int):
        return [signed(value)]
    found, at = [], 0
    while at < len(value):
        one, at = number(value, at)
        found.append(signed(one))
        if len(found) > most:
            raise ValueError(f"a list has more than {most} numbers")
    return found
