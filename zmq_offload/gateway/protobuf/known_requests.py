"""Takes requests apart that are like earlier ones, apart from their ids and tensors. Pure.

Clients write fields in the order of their numbers: the name and version of the model, the id, what describes the
tensors, and the tensors. When all but the id and the tensors is, byte for byte, as in a message that was read field by
field, then each field is where it was, as far from the end of the id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zmq_offload.gateway.calls import Buffer
from zmq_offload.protobuf.varints import varint
from zmq_offload.protocol.payload import Array

_NAME, _VERSION, _ID, _RAW = 0x0A, 0x12, 0x1A, 0x3A
"""Tags in the request: the field's number times 8, plus 2 for a value with a length."""

_KEPT = 256
"""Messages that are remembered."""
_KEPT_BYTES = 2048
"""The longest rest of one."""
_TENSORS = 16
"""The most tensors of one."""


class Divided(NamedTuple):
    """A message as bytes for `parse`, and what is not among them.

    `id` and `raw` are None if they are among them. `raw` views the message. `contents` has typed values by the index of
    their input.
    """

    rest: bytes
    id: str | None
    raw: Sequence[Buffer] | None
    contents: Mapping[int, Mapping[str, Array]]


class _Known(NamedTuple):
    """`pieces` are bytes after the id, and how many bytes of a tensor follow each."""

    rest: bytes
    pieces: tuple[tuple[bytes, int], ...]


_known: dict[tuple[bytes, int], _Known] = {}
"""By the bytes before the id, and how many follow it."""


def _around_id(data: Buffer) -> tuple[int, int, int]:
    """Where the bytes before the id end, and where its text begins and ends. Raises IndexError or ValueError if the
    message begins in another way, or has a name or an id of over 127 bytes."""
    length = data[1]
    at = 2 + length
    if data[0] != _NAME or length >= 0x80:
        raise ValueError
    if data[at] == _VERSION:
        length = data[at + 1]
        at += 2 + length
        if length >= 0x80:
            raise ValueError
    if data[at] != _ID:
        return at, at, at
    length, start = data[at + 1], at + 2
    if length >= 0x80:
        raise ValueError
    return at, start, start + length


def divide_as_before(data: Buffer) -> Divided | None:
    """Take a message apart as one before it. None: none was like it."""
    try:
        before, start, at = _around_id(data)
        known = _known.get((bytes(data[:before]), len(data) - at))
        if known is None:
            return None
        view = memoryview(data)
        request_id = str(view[start:at], "utf-8")
    except (IndexError, ValueError):
        return None
    raw = []
    for piece, length in known.pieces:
        begin = at + len(piece)
        if bytes(view[at:begin]) != piece:
            return None
        at = begin + length
        raw.append(view[begin:at])
    return Divided(known.rest, request_id, raw, {})


def remember(data: Buffer, divided: Divided) -> None:
    """Remember how a message was taken apart, if its fields are in the order in which clients write them."""
    rest, raw = divided.rest, divided.raw
    if not raw or divided.contents or len(rest) > _KEPT_BYTES or len(raw) > _TENSORS:
        return
    try:
        before, _, start = _around_id(data)
    except (IndexError, ValueError):
        return
    at = start + len(rest) - before
    described = bytes(data[start:at])
    if rest != bytes(data[:before]) + described:
        return
    pieces = []
    for tensor in raw:
        field = bytes((_RAW,)) + varint(len(tensor))
        pieces.append((described + field, len(tensor)))
        described = b""
        at += len(field) + len(tensor)
    if at == len(data):
        if len(_known) >= _KEPT:
            _known.clear()
        _known[rest[:before], at - start] = _Known(rest, tuple(pieces))
