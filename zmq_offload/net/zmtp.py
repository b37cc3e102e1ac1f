"""ZMTP 3.1 (rfc.zeromq.org/spec/37), the protocol of ZeroMQ's sockets, for a DEALER or a ROUTER without keys.

Pure: bytes go in and messages come out, messages go in and buffers come out. A message is a list of frames. The
security mechanism is NULL. A frame over the limit is refused before its memory is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from zmq_offload.net.frames import COMMAND, LONG, MORE, Buffer, long_head, split
from zmq_offload.net.pieces import PIECE, PROPERTY, Arriving, BadPiece
from zmq_offload.net.sharedmemory.references import BadTable, put_in

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
_SHARES = b"\x06SHARES"
"""A command of this project: this end takes references to shared memory, and proves that it can read that of the other
end, which offered it in its READY."""
_PARTNERS = {b"DEALER": (b"REP", b"DEALER", b"ROUTER"), b"ROUTER": (b"REQ", b"DEALER", b"ROUTER")}
"""Kinds of sockets, and the kinds that they may talk to."""

_CONTEXT_BYTES = 16
"""The part of a PING that a PONG returns has at most this many bytes."""

_COMMAND_BYTES = 4096
"""The longest command."""

_BUFFER_BYTES = 256 * 1024
"""Bytes that are received at once."""

_BETWEEN_PIECES_BYTES = 4096
_PIECES_A_TURN = 16
"""Pieces after which others have their turn: they may be short."""

_KEPT_BYTES = 16 * 1024
"""The longest frame of which a part is kept until the next bytes come. The rest of a longer one is received into memory
of the frame's own, as is all of a frame that is longer than the buffer."""


class Broken(Exception):
    """The other end does not speak this protocol. The connection cannot go on."""


class Refused(Broken):
    """The other end does not let this one in: it has keys, or it said so."""


class Scratch:
    """Memory into which bytes are received. The connections of a thread may share one: nothing stays in it."""

    __slots__ = ("data", "view")

    def __init__(self) -> None:
        self.data = bytearray(_BUFFER_BYTES)
        self.view = memoryview(self.data)


class Sharer(Protocol):
    """What an end that shares memory tells the other. `kind` is the kind of this end's socket."""

    @property
    def properties(self) -> Mapping[bytes, bytes]:
        """What it offers in its READY, now that the other end has greeted."""

    def proof(self, told: Mapping[bytes, bytes], kind: bytes) -> bytes | None:
        """What proves that this end can read the memory that the other one offers. None if it cannot. The properties
        that the other one told have names in lower case."""

    def is_proof(self, given: bytes, kind: bytes) -> bool:
        """Whether the other end proves that it can read this one's memory."""


class Peer:
    """One connection, from its first byte to its last.

    Receive into `buffer()` and tell `received` how much came, before another connection with the same `scratch` does;
    then send what is in `answers`, and clear it. After Broken the connection is to be closed.

    `tick` is to be called once in each `interval` (seconds) after `is_ready`. The other end is gone after three of them
    without anything from it, or after the time that its own last PING gave. `kind` is the kind of this end's socket.
    With a `turn`, at most so many messages are returned at once:
    `received(0)` returns others while `has_more`. With a `sharer`, messages may have references to shared memory (see
    `zmq_offload.net.sharedmemory`) if the other end shares that, too.
    """

    __slots__ = (
        "_body",
        "_data",
        "_filled",
        "_frames",
        "_greeted",
        "_interval",
        "_kind",
        "_more",
        "_most",
        "_most_frames",
        "_patience",
        "_pieces",
        "_rest",
        "_room",
        "_sharer",
        "_silent",
        "_view",
        "answers",
        "has_more",
        "is_ready",
        "properties",
        "proved",
        "shares",
        "takes_pieces",
        "turn",
    )

    def __init__(
        self,
        max_frame_bytes: int,
        max_frames: int,
        interval: float,
        kind: bytes = b"DEALER",
        scratch: Scratch | None = None,
        turn: int = 0,
        sharer: Sharer | None = None,
    ) -> None:
        self._most = max_frame_bytes
        self._most_frames = max_frames
        self._room = 0  # frames that a message may have now: none before READY
        self._interval = interval
        self._kind = kind
        self._sharer = sharer
        self.proved = False
        """Whether this end can read the other's memory, and said so."""
        scratch = scratch or Scratch()
        self._data, self._view = scratch.data, scratch.view
        self._rest = b""  # what was received and is not taken yet
        self._body: memoryview | None = None  # of a long frame of which the rest is missing
        self._filled = 0
        self._more = 0  # its flag
        self._frames: list[Buffer] = []  # of a message whose other frames are missing
        self._pieces: Arriving | None = None  # since the first piece
        self._greeted = 0  # bytes of the greeting that were answered
        self._silent = 0  # ticks without anything from the other end
        self._patience = 3.0  # ticks until it is gone
        self.is_ready = False
        """Whether messages may be sent."""
        self.turn = turn
        self.has_more = False
        """Whether messages may be complete that were not returned yet."""
        self.answers: list[bytes] = []
        self.properties: dict[bytes, bytes] = {}
        """What the other end told of itself, by name in lower case."""
        self.shares = False
        """Whether messages may have references to shared memory, in both directions."""
        self.takes_pieces = False
        """Whether long messages may be sent in pieces (see `zmq_offload.net.pieces`)."""

    @property
    def identity(self) -> bytes:
        """The name that the other end gave itself, if it did."""
        return self.properties.get(b"identity", b"")

    def buffer(self) -> memoryview:
        """Where to receive the next bytes."""
        if self._body is not None:
            return self._body[self._filled :]
        kept = len(self._rest)
        if kept:
            self._view[:kept] = self._rest
        if self._pieces is not None and (body := self._pieces.buffer()) is not None:
            # Between two pieces: what is received beyond the head of the next one is copied once more.
            return body if self._pieces.left else self._view[kept : kept + _BETWEEN_PIECES_BYTES]
        return self._view[kept:] if kept else self._view

    @property
    def is_in_frame(self) -> bool:
        """Whether `buffer()` is the rest of a frame, and what follows may be received into `scratch`: tell `received`
        of both, one after the other."""
        return self._body is not None

    @property
    def scratch(self) -> memoryview:
        return self._view

    @property
    def is_in_piece(self) -> bool:
        """Whether `buffer()` takes a part of a piece, and what follows may be received into `aside`: tell `received` of
        both, one after the other."""
        return self._pieces is not None and self._pieces.left > 0 and self._pieces.buffer() is not None

    @property
    def aside(self) -> memoryview:
        return self._view[:_BETWEEN_PIECES_BYTES]

    @property
    def is_amid_pieces(self) -> bool:
        """Whether a part of a message came in pieces."""
        return self._pieces is not None and self._pieces.buffer() is not None

    def received(self, count: int) -> list[list[Buffer]]:
        """`count` bytes were received into `buffer()`. Returns the messages that are complete. Raises Broken."""
        self._silent = 0
        self.has_more = False
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
            return self._followed(messages) if self.shares else messages
        stop = len(self._rest) + count
        at = 0
        if self._pieces is not None and self._pieces.left:
            if self._pieces.buffer() is not None:
                try:
                    self._pieces.received(count, messages)
                except BadPiece as error:
                    raise Broken(str(error)) from None
                return self._followed(messages) if self.shares else messages
            at = self._take_piece(0, stop, messages)
        data, view = self._data, self._view
        if self._greeted < _GREETING_BYTES:
            self._greet(stop)
            if self._greeted < _GREETING_BYTES:
                self._rest = bytes(view[:stop])
                return messages
            at = _GREETING_BYTES
        turn, pieces = self.turn, 0
        while not turn or (len(messages) < turn and pieces < _PIECES_A_TURN):
            at, self._frames = split(view, at, stop, self._most, self._room, self._frames, messages, turn)
            if stop - at < 2 or (turn and len(messages) == turn):
                break
            # A command, a frame that is not complete, or one that is refused.
            flags = data[at]
            start = at + (9 if flags & LONG else 2)
            if start > stop:
                break
            size = int.from_bytes(data[at + 1 : start], "big")
            end = start + size
            if flags == PIECE | LONG and self.is_ready:
                at = self._take_piece(start, stop, messages, size)
                pieces += 1
                continue
            self._check(flags, size)
            if end > stop:
                if size > _KEPT_BYTES:
                    self._begin(flags, size, view[start:stop])
                    at = stop
                break
            self._obey(bytes(view[start:end]))
            at = end
        self.has_more = at < stop and turn > 0 and (len(messages) >= turn or pieces == _PIECES_A_TURN)
        self._rest = bytes(view[at:stop]) if at < stop else b""
        return self._followed(messages) if self.shares else messages

    def _take_piece(self, at: int, stop: int, messages: list[Any], size: int | None = None) -> int:
        """Take what has come of a piece, which begins there if it has a `size`. Returns where it ends."""
        try:
            if self._pieces is None:
                self._pieces = Arriving(self._most, self._most_frames)
            if size is not None:
                self._pieces.begin(size)
            end = min(at + self._pieces.left, stop)
            self._pieces.take(self._view[at:end], messages)
        except BadPiece as error:
            raise Broken(str(error)) from None
        return end

    def _followed(self, messages: list[Any]) -> list[Any]:
        """Put references where they belong in their messages."""
        for at, frames in enumerate(messages):
            envelope = frames[0]
            if type(envelope) is bytes and envelope >= b"\x80":
                try:
                    messages[at] = put_in(frames, self._most)
                except BadTable as error:
                    self.has_more = False
                    raise Broken(str(error)) from None
        return messages

    def forget(self) -> None:
        """Give back the memory of a message that is not complete: the connection is closed."""
        self._body = self._pieces = None
        self._frames, self._rest, self.has_more = [], b"", False

    def _greet(self, stop: int) -> None:
        """Check what has come of the greeting, and answer it."""
        data = self._data
        if data[0] != _SIGNATURE[0] or (stop > 9 and not data[9] & 1):
            raise Broken("it does not speak ZMTP")
        if stop >= _VERSION_BYTES and not self._greeted:
            if data[10] < 3:
                raise Broken(f"it speaks ZMTP {data[10]}; use ZMTP 3")
            self._greeted = _VERSION_BYTES
            self.answers.append(_GREETING[_VERSION_BYTES:])
        if stop >= _GREETING_BYTES:
            if data[12:32] != _NULL:
                raise Refused("it has keys")
            self._greeted = _GREETING_BYTES
            told = {b"Socket-Type": self._kind, b"Identity": b"", PROPERTY: b"1"}
            if self._sharer is not None:
                told.update(self._sharer.properties)
            self.answers.append(_command(_READY + b"".join(_property(*pair) for pair in told.items())))

    def _check(self, flags: int, size: int) -> None:
        """Refuse a frame by its flags and size."""
        if flags > COMMAND | LONG or flags & (COMMAND | MORE) == COMMAND | MORE:
            raise Broken(f"a frame has the flags {flags:#04x}")
        most = _COMMAND_BYTES if flags & COMMAND else self._most
        if size > most:
            raise Broken(f"a frame has {size} bytes; the limit is {most}")
        if not flags & COMMAND and len(self._frames) >= self._room:
            raise Broken(f"a message has more than {self._room} frames")

    def _begin(self, flags: int, size: int, part: memoryview) -> None:
        """Receive the rest of a long frame, of which a part has come, into its own memory."""
        try:
            self._body = np.empty(size, np.uint8).data
        except MemoryError:
            raise Broken(f"there is no memory for a frame of {size} bytes") from None
        self._more = flags & MORE
        self._filled = len(part)
        self._body[: self._filled] = part

    def _obey(self, command: bytes) -> None:
        if not self.is_ready:
            if command.startswith(_ERROR):
                raise Refused(f"it said {command[len(_ERROR) + 1 :].decode('ascii', 'replace')!r}")
            if not command.startswith(_READY):
                raise Broken("a command came before READY")
            self.properties = _properties(command[len(_READY) :])
            kind, partners = self.properties.get(b"socket-type"), _PARTNERS[self._kind]
            if kind not in partners:
                own, others = self._kind.decode(), b", ".join(partners).decode()
                raise Broken(f"it is a socket of type {kind!r}; a {own} talks to {others}")
            self.is_ready, self._room = True, self._most_frames
            self.takes_pieces = self.properties.get(PROPERTY.lower()) == b"1"
            if self._sharer is not None and (proof := self._sharer.proof(self.properties, self._kind)) is not None:
                self.proved = True
                self.answers.append(_command(_SHARES + proof))
        elif command.startswith(_SHARES):
            if self._sharer is not None and self.proved:
                self.shares = self._sharer.is_proof(command[len(_SHARES) :], self._kind)
        elif command.startswith(_PING):
            rest = command[len(_PING) :]
            if not 2 <= len(rest) <= 2 + _CONTEXT_BYTES:
                raise Broken("a PING has a time and at most 16 bytes")
            ttl = int.from_bytes(rest[:2], "big") / 10
            self._patience = min(3.0, ttl / self._interval) if ttl else 3.0
            self.answers.append(_command(_PONG + rest[2:]))

    def tick(self) -> bytes | None:
        """An interval is over. Returns what to send: a PING if the other end was silent in it, else nothing.

        None if the other end is gone. One that sends PINGs itself, as libzmq does with heartbeats, needs none.
        """
        silent = self._silent
        if silent >= self._patience:
            return None
        self._silent = silent + 1
        if not silent and self._patience > 1:
            return b""
        return _command(_PING + struct.pack("!H", min(0xFFFF, round(self._interval * 30))))


def _command(body: bytes) -> bytes:
    size = len(body)
    return (bytes((COMMAND, size)) if size < 256 else long_head(LONG | COMMAND, size)) + body


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
