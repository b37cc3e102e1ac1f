"""References on the wire: a table, as the last frame of a message, of the frames that are not in it. Pure.

The first byte of the envelope of such a message has the bit `SHARED`. An entry of the table has, little-endian: the
position of its frame in the whole message (2 bytes), the owner's process id (4) and descriptor (4), the cookie of its
arena (16), the number of the cell (4), its generation (8), where the bytes begin in the arena's data (8), and how many
they are (8).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from zmq_offload.net.sharedmemory.layout import COOKIE_BYTES, COUNT, MOST_BYTES
from zmq_offload.protocol import limits

SHARED = 0x80

FIRST = 2
"""Envelope and header are always in the message; the frames from here on may be references."""

_ENTRY = struct.Struct(f"<HII{COOKIE_BYTES}sIQQQ")


class BadTable(ValueError):
    """A message with references is not as it should be. Who sent it does not speak this protocol."""


class Reference(NamedTuple):
    """Where bytes lie: `nbytes` from `start` on in the data of an arena, if its cell still has the generation."""

    pid: int
    fd: int
    cookie: bytes
    cell: int
    generation: int
    start: int
    nbytes: int


class SharedFrame:
    """Stands for a frame whose bytes lie in an arena."""

    __slots__ = ("reference",)

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def __len__(self) -> int:
        return self.reference.nbytes


Frame: TypeAlias = "bytes | memoryview | SharedFrame"


def take_out(frames: Sequence[Frame]) -> list[bytes | memoryview]:
    """The frames to send for a message of which at least one is shared. The first is the envelope."""
    entries = []
    sent: list[bytes | memoryview] = []
    for position, frame in enumerate(frames):
        if type(frame) is SharedFrame:
            entries.append(_ENTRY.pack(position, *frame.reference))
        else:
            sent.append(frame)  # type: ignore[arg-type]
    envelope = bytes(sent[0])
    sent[0] = bytes((envelope[0] | SHARED,)) + envelope[1:]
    sent.append(b"".join(entries))
    return sent


def put_in(frames: Sequence[bytes | memoryview], most_bytes: int) -> list[Frame]:
    """The message whose frames, table included, have come. `most_bytes`: the longest frame that is taken.

    Raises BadTable.
    """
    *came, table = frames
    count, rest = divmod(len(table), _ENTRY.size)
    if not came or rest or not count:
        raise BadTable(f"a table of references has entries of {_ENTRY.size} bytes, not {len(table)} bytes")
    whole = len(came) + count
    if whole > limits.FRAMES:
        raise BadTable(f"a message has more than {limits.FRAMES} frames, references included")
    envelope = bytes(came[0])
    message: list[Frame] = [bytes((envelope[0] & ~SHARED,)) + envelope[1:]]
    came_at = 1
    for position, *where in _ENTRY.iter_unpack(table):
        here = position - len(message)
        if position < FIRST or here < 0 or came_at + here > len(came):
            raise BadTable(f"a reference is for frame {position}; references are in order and within their message")
        message += came[came_at : came_at + here]
        came_at += here
        message.append(SharedFrame(_checked(Reference(*where), most_bytes)))
    message += came[came_at:]
    return message


def _checked(reference: Reference, most_bytes: int) -> Reference:
    if not 0 < reference.pid < 2**31 or reference.fd >= 2**31 or reference.cell >= COUNT:
        raise BadTable(f"process {reference.pid}, descriptor {reference.fd}, cell {reference.cell} cannot be")
    if reference.start + reference.nbytes > MOST_BYTES:
        raise BadTable(f"{reference.nbytes} bytes at {reference.start} are in no arena")
    if not 0 < reference.nbytes <= most_bytes:
        raise BadTable(f"a shared frame has {reference.nbytes} bytes; the limit is {most_bytes}")
    return reference
