"""Messages as the frames of ZMTP (rfc.zeromq.org/spec/37), to bytes and back. Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

from zmq_offload import native

Buffer: TypeAlias = "bytes | memoryview"

MORE, LONG, COMMAND = 1, 2, 4
"""Flags of a frame: others of the message follow; its size has eight bytes; it is a command, no frame of a message."""

_SHORT_LAST, _SHORT_MORE = ([bytes((more, size)) for size in range(256)] for more in (0, MORE))
long_head = struct.Struct("!BQ").pack


def encode(frames: Sequence[Buffer]) -> list[Buffer]:
    """The buffers of a message, of which none is copied."""
    buffers: list[Buffer] = []
    append(buffers, frames)
    return buffers


def _append(buffers: list[Buffer], frames: Sequence[Buffer]) -> int:
    """Append the buffers of a message. Returns how many bytes they have.

    Compiled code joins those of a short message, which costs less than a buffer for each. Others are not copied.
    """
    left, total = len(frames), 0
    for frame in frames:
        left -= 1
        size = len(frame)
        if size < 256:
            total += size + 2
            buffers.append(_SHORT_MORE[size] if left else _SHORT_LAST[size])
        else:
            total += size + 9
            buffers.append(long_head(LONG | MORE if left else LONG, size))
        buffers.append(frame)
    return total


def _split(
    view: memoryview,
    at: int,
    stop: int,
    most: int,
    room: int,
    frames: list[Buffer],
    messages: list[list[Buffer]],
    turn: int,
) -> tuple[int, list[Buffer]]:
    """Take frames out of `view[at:stop]`, of at most `most` bytes each and at most `room` in a message.

    `frames` are those of a message of which the beginning came earlier. Adds the messages that are complete to
    `messages`, until these are `turn` (0: without a limit). Stops before a frame that is not complete, is refused, or
    is a command. Returns where it stopped, and the frames of a message that is not complete.
    """
    data: Any = view.obj  # is faster to index
    while stop - at > 1:
        flags = data[at]
        if flags & LONG:
            start = at + 9
            if start > stop:
                break
            size = int.from_bytes(data[at + 1 : start], "big")
        else:
            start = at + 2
            size = data[at + 1]
        end = start + size
        if flags > LONG | MORE or end > stop or size > most or len(frames) >= room:
            break
        frames.append(bytes(view[start:end]))
        at = end
        if not flags & MORE:
            messages.append(frames)
            frames = []
            if len(messages) == turn:
                break
    return at, frames


split, append = (_split, _append) if native.wire is None else (native.wire.split, native.wire.append)


def read_heads(frames: list[Buffer]) -> list[Buffer]:
    """Make bytes of a message's envelope and header, the frames that are read here and not passed on.

    A frame of over 16 KiB of which only a part came at first is a view of memory of its own.
    """
    for at, frame in enumerate(frames[:2]):
        if type(frame) is not bytes:
            frames[at] = bytes(frame)
    return frames
