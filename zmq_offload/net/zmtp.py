"""ZMTP 3.1 (rfc.zeromq.org/spec/37), the protocol of ZeroMQ's sockets, for a DEALER that connects without keys.

Pure: bytes go in and messages come out, messages go in and buffers come out. A message is a list of frames. The
security mechanism is NULL. A frame over the limit is refused before its memory is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

Buffer: TypeAlias = "bytes | memoryview"

_MORE, _LONG, _COMMAND = 1, 2, 4

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_NULL = b"NULL".ljust(20, b"\0")
_VERSION_BYTES = 11
"""Bytes after which the other end's version is known."""
_GREETING_BYTES = 64
_GREETING = (_SIGNATURE + b"\x03\x01" + _NULL).ljust(_GREETING_BYTES, b"\0")

HELLO = _GREETING[:_VERSION_BYTES]
"""What to send first. libzmq answers it with its whole greeting, so that its mechanism is known even if it is another
than this end's. With the whole greeting it would close at once."""

_READY = b"\x05READY"
_ERROR = b"\x05ERROR"
_PING = b"\x04PING"
_PONG = b"\x04PONG"
_PEERS = (b"REP", b"DEALER", b"ROUTER")
"""Kinds of sockets that a DEALER may talk to."""

_CONTEXT_BYTES = 16
"""The part of a PING that a PONG returns has at most this many bytes."""

_COMMAND_BYTES = 4096
"""The longest command. READY has less than 100 bytes."""

_BUFFER_BYTES = 128 * 1024
"""Bytes that are received at once. A longer frame is received into memory of its own."""


class Broken(Exception):
    """The other end does not speak this protocol. The connection cannot go on."""


class Refused(Broken):
    """The other end does not let this one in: it has keys, or it said so."""


class Peer:
    """One connection, from its first byte to its last.

    Receive into `buffer()` and tell `received` how much came; then send what is in `answers`, and clear it. After
    Broken the connection is to be closed.

    `tick` is to be called once in each `interval` (seconds) after `is_ready`, and sends a PING. The other end is gone
    after three of them without anything from it, or after the time that its own last PING gave.
    """

    def __init__(self, max_frame_bytes: int, max_frames: int, interval: float) -> None:
        self._most = max_frame_bytes
        self._most_frames = max_frames
        self._room = 0  # frames that a message may have now: none before READY
        self._interval = interval
        self._data = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._data)
        self._stop = 0  # the end of what was received and is not taken yet; it begins at 0
        self._body: memoryview | None = None  # of a long frame of which the rest is missing
        self._filled = 0
        self._more = 0  # its flag
        self._frames: list[Buffer] = []  # of a message whose other frames are missing
        self._greeted = 0  # bytes of the greeting that were answered
        self._ping = _command(_PING + struct.pack("!H", min(0xFFFF, round(interval * 30))))
        self._silent = 0  # ticks without anything from the other end
        self._patience = 3.0  # ticks until it is gone
        self.is_ready = False
        """Whether messages may be sent."""
        self.answers: list[bytes] = []

    def buffer(self) -> memoryview:
        """Where to receive the next bytes."""
        if self._body is not None:
            return self._body[self._filled :]
        return self._view[self._stop :]

    def received(self, count: int) -> list[list[Buffer]]:
        """`count` bytes were received into `buffer()`. Returns the messages that are complete. Raises Broken."""
        self._silent = 0
        messages: list[list[Buffer]] = []
        body = self._body
        if body is not None:
            self._filled += count
            if self._filled == len(body):
                self._body = None
                self._frames.append(body)
                if not self._more:
                    messages.append(self._frames)
                    self._frames = []
            return messages
        self._stop += count
        at = 0
        if self._greeted < _GREETING_BYTES:
            self._greet()
            if self._greeted < _GREETING_BYTES:
                return messages
            at = _GREETING_BYTES
        data, stop, frames = self._data, self._stop, self._frames
        while stop - at > 1:
            flags = data[at]
            if flags & _LONG:
                start = at + 9
                if start > stop:
                    break
                size = int.from_bytes(data[at + 1 : start], "big")
            else:
                start = at + 2
                size = data[at + 1]
            end = start + size
            if flags > _LONG | _MORE or end > stop or size > self._most or len(frames) >= self._room:
                self._check(flags, size)
                if end > stop:
                    if end - at > _BUFFER_BYTES:
                        self._begin(flags, size, start)
                        at = stop
                    break
                self._obey(bytes(self._view[start:end]))
            else:
                frames.append(bytes(self._view[start:end]))
                if not flags & _MORE:
                    messages.append(frames)
                    frames = self._frames = []
            at = end
        if at:
            self._stop = stop - at
            data[: self._stop] = data[at:stop]
        return messages

    def _greet(self) -> None:
        """Check what has come of the greeting, and answer it."""
        data = self._data
        if data[0] != _SIGNATURE[0] or (self._stop > 9 and not data[9] & 1):
            raise Broken("it does not speak ZMTP")
        if self._stop >= _VERSION_BYTES and not self._greeted:
            if data[10] < 3:
                raise Broken(f"it speaks ZMTP {data[10]}; use ZMTP 3")
            self._greeted = _VERSION_BYTES
            self.answers.append(_GREETING[_VERSION_BYTES:])
        if self._stop >= _GREETING_BYTES:
            if data[12:32] != _NULL:
                raise Refused("it has keys")
            self._greeted = _GREETING_BYTES
            self.answers.append(_command(_READY + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b"")))

    def _check(self, flags: int, size: int) -> None:
        """Refuse a frame by its flags and size."""
        if flags > _COMMAND | _LONG or flags & (_COMMAND | _MORE) == _COMMAND | _MORE:
            raise Broken(f"a frame has the flags {flags:#04x}")
        most = _COMMAND_BYTES if flags & _COMMAND else self._most
        if size > most:
            raise Broken(f"a frame has {size} bytes; the limit is {most}")
        if not flags & _COMMAND and len(self._frames) >= self._room:
            raise Broken(f"a message has more than {self._room} frames")

    def _begin(self, flags: int, size: int, start: int) -> None:
        """Receive the rest of a long frame into its own memory."""
        self._body = np.empty(size, np.uint8).data
        self._more = flags & _MORE
        self._filled = self._stop - start
        self._body[: self._filled] = self._view[start : self._stop]

    def _obey(self, command: bytes) -> None:
        if not self.is_ready:
            if command.startswith(_ERROR):
                raise Refused(f"it said {command[len(_ERROR) + 1 :].decode('ascii', 'replace')!r}")
            if not command.startswith(_READY):
                raise Broken("a command came before READY")
            kind = _properties(command[len(_READY) :]).get(b"socket-type")
            if kind not in _PEERS:
                raise Broken(f"it is a socket of type {kind!r}; a DEALER talks to a ROUTER")
            self.is_ready, self._room = True, self._most_frames
        elif command.startswith(_PING):
            rest = command[len(_PING) :]
            if not 2 <= len(rest) <= 2 + _CONTEXT_BYTES:
                raise Broken("a PING has a time and at most 16 bytes")
            ttl = int.from_bytes(rest[:2], "big") / 10
            self._patience = min(3.0, ttl / self._interval) if ttl else 3.0
            self.answers.append(_command(_PONG + rest[2:]))

    def tick(self) -> bytes | None:
        """An interval is over. Returns a PING to send, or None if the other end is gone."""
        if self._silent >= self._patience:
            return None
        self._silent += 1
        return self._ping


_SHORT_HEADS = [[bytes((more, size)) for size in range(256)] for more in (0, _MORE)]
_long_head = struct.Struct("!BQ").pack


def encode(frames: Sequence[Buffer]) -> list[Buffer]:
    """The buffers of a message, of which none is copied."""
    buffers: list[Buffer] = []
    left = len(frames)
    for frame in frames:
        left -= 1
        size, more = len(frame), 1 if left else 0
        buffers.append(_SHORT_HEADS[more][size] if size < 256 else _long_head(_LONG | more, size))
        buffers.append(frame)
    return buffers


def _command(body: bytes) -> bytes:
    return bytes((_COMMAND, len(body))) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def _properties(data: bytes) -> dict[bytes, bytes]:
    """The properties of a READY, by name in lower case. Raises Broken."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        start = at + 1 + data[at]
        end = start + 4 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data) or start + 4 > len(data):
            raise Broken("a READY ends within a property")
        found[data[at + 1 : start].lower()] = data[start + 4 : end]
        at = end
    return found
