"""Frames of our protocol in one piece of bytes: the argument and the value of one packed function. Pure.

A parcel is the number of its frames (four bytes), the length of each (eight bytes), and the frames. They are the
broker's: an envelope of `zmq_offload.protocol.messages`, and what follows it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

from zmq_offload.errors import ProtocolError
from zmq_offload.protocol import limits

FUNCTION = "zmq_offload.call"
"""The name of the packed function that takes a parcel and returns one."""

SESSION = bytes(16)
"""The session of all messages: a connection has one client."""

Frame: TypeAlias = "bytes | memoryview"


def pack(frames: Sequence[Frame]) -> list[Frame]:
    """The buffers that make a parcel, one after the other."""
    return [struct.pack(f"<I{len(frames)}Q", len(frames), *map(len, frames)), *frames]


def unpack(parcel: bytes | bytearray | memoryview) -> list[memoryview]:
    """The frames of a parcel, as views of it. Raises ProtocolError."""
    view = memoryview(parcel)
    count = struct.unpack_from("<I", view)[0] if len(view) >= 4 else 0
    at = 4 + 8 * count
    if not 1 <= count <= limits.FRAMES or at > len(view):
        raise ProtocolError(f"a parcel of {len(view)} bytes has no {count} frames")
    frames = []
    for length in struct.unpack_from(f"<{count}Q", view, 4):
        if length > len(view) - at:
            raise ProtocolError(f"a frame of {length} bytes does not end in its parcel of {len(view)}")
        frames.append(view[at : at + length])
        at += length
    if at != len(view):
        raise ProtocolError(f"{len(view) - at} bytes follow the frames of a parcel")
    return frames
