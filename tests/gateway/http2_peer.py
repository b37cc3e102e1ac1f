"""The client's end of an HTTP/2 connection, for tests that look at single frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import hpack

from zmq_offload.gateway.http2 import frames
from zmq_offload.gateway.http2.connection import Connection
from zmq_offload.gateway.http2.frames import HEAD, PREFACE, frame
from zmq_offload.gateway.http2.headers import RequestHead
from zmq_offload.gateway.http2.settings import Limits

REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/m"), (":authority", "h"), ("te", "trailers")]
SETTINGS = frame(frames.SETTINGS, 0, 0, b"")


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def number(self) -> int:
        """The last number of the payload: an error code, or an increment."""
        return int.from_bytes(self.payload[4:8] if self.kind == frames.GOAWAY else self.payload, "big")


def split(data: bytes) -> list[Frame]:
    """Whole frames."""
    found = []
    while data:
        word, flags, stream = HEAD.unpack_from(data)
        end = HEAD.size + (word >> 8)
        assert end <= len(data)
        found.append(Frame(word & 0xFF, flags, stream, data[HEAD.size : end]))
        data = data[end:]
    return found


def block(fields: Iterable[tuple[str, ...]]) -> bytes:
    """A header block that needs no table."""
    return hpack.Encoder().encode([(name, value, True) for name, value in fields])


def headers(stream: int, fields: Iterable[tuple[str, str]] = REQUEST, end: bool = False) -> bytes:
    flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
    return frame(frames.HEADERS, flags, stream, block(fields))


def data(stream: int, payload: bytes, end: bool = False) -> bytes:
    return frame(frames.DATA, frames.END_STREAM if end else 0, stream, payload)


def settings(**values: int) -> bytes:
    names = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "unknown": 99}
    return frames.settings({names[name]: value for name, value in values.items()})


class Peer:
    """A connection that is greeted already, and the frames that it sent since."""

    def __init__(self, limits: Limits | None = None, first: bytes = SETTINGS) -> None:
        self.connection: Connection[RequestHead] = Connection(lambda head: head, limits or Limits())
        self.send(PREFACE + first)
        self.greeting = self.frames()

    def send(self, *parts: bytes) -> list[Any]:
        """Send bytes; returns the events."""
        return self.connection.receive(b"".join(parts))

    def frames(self) -> list[Frame]:
        return split(b"".join(self.connection.take()))

    def fault(self, *parts: bytes) -> int:
        """Send bytes that end the connection; returns the error code of its GOAWAY."""
        events = self.send(*parts)
        last = self.frames()[-1]
        assert self.connection.failed and self.connection.finished and last.kind == frames.GOAWAY
        assert events[-1].code == last.number and events[-1].reason.encode() == last.payload[8:]
        assert not self.send(SETTINGS) and not self.frames()
        return last.number

    def break_stream(self, *parts: bytes) -> int:
        """Send bytes that end one stream; returns the error code of its RST_STREAM."""
        self.send(*parts)
        last = self.frames()[-1]
        assert not self.connection.failed and last.kind == frames.RST_STREAM
        assert not self.connection.failed
        return last.number
