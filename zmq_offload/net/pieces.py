"""Long messages in pieces, between which others pass. Pure.

A connection whose ends both say so in their READY carries two streams of messages. The second one, for long messages,
is an ordinary stream of ZMTP's frames, cut into pieces. A piece is a frame of the first stream with the flag `PIECE`,
between two messages. So a short message waits for one piece, however long the message is that is being sent.

Messages of a single frame, which say what is to become of others, do not overtake: while a long message is being sent,
they follow it on the second stream.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from zmq_offload.net.frames import LONG, MORE, Buffer, long_head

PROPERTY = b"X-Zmq-Offload-Pieces"
"""The property of READY by which an end says that it takes pieces."""

PIECE = 8
"""The flag of a frame that is a piece. ZMTP has no use for it."""

PIECE_BYTES = 512 * 1024
"""The first pieces of a connection, and all of a slow one. Messages of fewer bytes are not cut."""

LONGEST_PIECE_BYTES = 1024 * 1024
"""The longest piece that is sent or taken."""

_PIECE_SECONDS = 0.004
"""A piece has about as many bytes as the connection takes in this time, so that a short message waits little longer."""

MOST_MESSAGES = 64
"""Messages that end in a piece, at most: an end that receives handles those of a piece together."""

_KEPT_BYTES = 16 * 1024


class BadPiece(ValueError):
    """What comes in pieces is not a stream of messages, or is too many. Its sender does not speak this protocol."""


class Arriving:
    """The second stream of a connection, at the end that receives. `left` bytes of a piece have not come yet.

    Receive into `buffer()`, if it has one, and tell `received`; else pass what came of the piece to `take`.
    """

    __slots__ = ("_body", "_ended", "_filled", "_frames", "_more", "_most", "_most_frames", "_rest", "left")

    def __init__(self, max_frame_bytes: int, max_frames: int) -> None:
        self._most, self._most_frames = max_frame_bytes, max_frames
        self._body: memoryview | None = None  # of a frame of which the rest is missing
        self._filled = 0
        self._more = 0  # its flag
        self._frames: list[Buffer] = []  # of a message whose other frames are missing
        self._rest = b""  # of a short frame, or of its head
        self._ended = 0  # messages that ended in the piece
        self.left = 0

    def begin(self, size: int) -> None:
        """A piece of `size` bytes begins. Raises BadPiece."""
        if not 0 < size <= LONGEST_PIECE_BYTES:
            raise BadPiece(f"a piece has {size} bytes; it has 1 to {LONGEST_PIECE_BYTES}")
        self.left, self._ended = size, 0

    def buffer(self) -> memoryview | None:
        """Where the next bytes of the piece belong. None if that is not known."""
        return None if self._body is None else self._body[self._filled : self._filled + self.left]

    def received(self, count: int, messages: list[list[Buffer]]) -> None:
        """`count` bytes were received into `buffer()`. Appends the message that is complete. Raises BadPiece."""
        assert self._body is not None
        self.left -= count
        self._filled += count
        if self._filled == len(self._body):
            self._end(self._body, self._more, messages)
            self._body = None

    def take(self, part: memoryview, messages: list[list[Buffer]]) -> None:
        """Bytes of the piece that came elsewhere. Appends the messages that are complete. Raises BadPiece."""
        if self._body is not None:
            count = min(len(part), len(self._body) - self._filled)
            self._body[self._filled : self._filled + count] = part[:count]
            self.received(count, messages)
            part = part[count:]
        self.left -= len(part)
        if self._rest:
            part = memoryview(self._rest + bytes(part))
        while len(part) > 1:
            flags = part[0]
            start = 9 if flags & LONG else 2
            if len(part) < start:
                break
            size = int.from_bytes(part[1:start], "big")
            self._check(flags, size)
            end = start + size
            if end <= len(part):
                self._end(bytes(part[start:end]), flags & MORE, messages)
            elif size > _KEPT_BYTES:
                self._begin(flags, size, part[start:])
                end = len(part)
            else:
                break
            part = part[end:]
        self._rest = bytes(part)

    def _check(self, flags: int, size: int) -> None:
        if flags > LONG | MORE:
            raise BadPiece(f"a frame in pieces has the flags {flags:#04x}")
        if size > self._most:
            raise BadPiece(f"a frame has {size} bytes; the limit is {self._most}")
        if len(self._frames) >= self._most_frames:
            raise BadPiece(f"a message has more than {self._most_frames} frames")

    def _begin(self, flags: int, size: int, part: memoryview) -> None:
        try:
            self._body = np.empty(size, np.uint8).data
        except MemoryError:
            raise BadPiece(f"there is no memory for a frame of {size} bytes") from None
        self._more = flags & MORE
        self._filled = len(part)
        self._body[: self._filled] = part

    def _end(self, frame: Buffer, more: int, messages: list[list[Buffer]]) -> None:
        self._frames.append(frame)
        if not more:
            self._ended += 1
            if self._ended > MOST_MESSAGES:
                raise BadPiece(f"more than {MOST_MESSAGES} messages end in a piece")
            messages.append(self._frames)
            self._frames = []


class Leaving:
    """The second stream of a connection, at the end that sends: what waits, and how many bytes were cut off."""

    __slots__ = ("_buffers", "_cut_at", "_ends", "_size", "cut_bytes", "length", "put_bytes")

    def __init__(self) -> None:
        self._buffers: deque[Buffer] = deque()
        self.length = PIECE_BYTES
        """The longest piece for now."""
        self._size = 0  # of the last one
        self._cut_at = math.inf  # when it was cut off; infinite if nothing was left to follow it
        self._ends: deque[int] = deque()  # of the messages, as values of `put_bytes`
        self.put_bytes = self.cut_bytes = 0

    @property
    def messages(self) -> int:
        """Messages of which not all was cut off."""
        return len(self._ends)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were not cut off."""
        return self.put_bytes - self.cut_bytes

    def put(self, buffers: Sequence[Buffer], size: int) -> None:
        """The buffers of a message, which have `size` bytes."""
        self._buffers += buffers
        self.put_bytes += size
        self._ends.append(self.put_bytes)

    def cut(self, now: float) -> tuple[list[Buffer], int]:
        """Cut off a piece, since the one before it was taken. Returns its buffers, and how many bytes they have. None
        is copied. `now` is in seconds of a clock that never goes back."""
        buffers, waiting, size = [], self._buffers, 0
        most = self._paced(now)
        if len(self._ends) > MOST_MESSAGES:
            most = min(most, self._ends[MOST_MESSAGES - 1] - self.cut_bytes)
        while waiting and size < most:
            buffer, room = waiting.popleft(), most - size
            if len(buffer) > room:
                view = memoryview(buffer)
                waiting.appendleft(view[room:])
                buffer = view[:room]
            buffers.append(buffer)
            size += len(buffer)
        self.cut_bytes += size
        while self._ends and self._ends[0] <= self.cut_bytes:
            self._ends.popleft()
        self._size, self._cut_at = size, now if self._ends else math.inf
        head = long_head(PIECE | LONG, size)
        return [head, *buffers], len(head) + size

    def _paced(self, now: float) -> int:
        """How long a piece may be, by the time in which the last one was taken."""
        took = now - self._cut_at
        if took > 0:
            fits = self._size * _PIECE_SECONDS / took
            if fits >= 2 * self.length:
                self.length = min(2 * self.length, LONGEST_PIECE_BYTES)
            elif fits <= self.length / 2:
                self.length = max(self.length // 2, PIECE_BYTES)
        return self.length
