"""What has come of a request: from bytes to a head, and to a body in its own memory. Pure."""

from __future__ import annotations

from zmq_offload.gateway.calls import Buffer, Memory
from zmq_offload.gateway.http.chunks import Chunks
from zmq_offload.gateway.http.heads import END, Head, Heads, check_incomplete
from zmq_offload.gateway.http.limits import Limits


class Incoming:
    """One request after the other, in the bytes of a connection.

    `head` is that of the request whose body is missing; the body is to be taken even if it is empty. Once a head tells
    the length of a body that has not fully come, the rest is received straight into the body's memory: see `buffer`.
    `memory` gives it.
    """

    __slots__ = ("_body", "_chunks", "_filled", "_heads", "_limits", "_memory", "head")

    def __init__(self, heads: Heads, limits: Limits, memory: Memory) -> None:
        self._memory = memory
        self._heads = heads
        self._limits = limits
        self.head: Head | None = None
        self._body: memoryview | None = None
        self._filled = 0
        self._chunks: Chunks | None = None

    @property
    def count(self) -> int:
        """The bytes that have come of the body."""
        return len(self._chunks.body) if self._chunks is not None else self._filled

    @property
    def buffer(self) -> memoryview | None:
        """Where the next bytes are to be received, if that is the body's memory."""
        return None if self._body is None else self._body[self._filled :]

    def received(self, count: int) -> Buffer | None:
        """Bytes were received into `buffer`. Returns the body if it is complete."""
        body = self._body
        self._filled += count
        if body is None or self._filled < len(body):
            return None
        self.drop()
        return body

    def drop(self) -> None:
        """The request is complete, or not wanted any more."""
        self.head = self._body = self._chunks = None
        self._filled = 0

    def take_head(self, data: bytearray, start: int, stop: int) -> int:
        """Take a head. Returns where it ends, or -1 if it has not fully come. Raises Refused."""
        while data.startswith(b"\r\n", start, stop):  # RFC 9112, 2.2: empty lines before a request are ignored
            start += 2
        end = data.find(END, start, stop)
        if end < 0:
            check_incomplete(data[start:stop], self._limits)
            return -1
        end += len(END)
        self.head = self._heads.parse(bytes(memoryview(data)[start:end]))
        return end

    def take_body(self, length: int | None, data: bytearray, start: int, stop: int) -> tuple[int, Buffer | None]:
        """Take what has come of the body; None is the length of one in chunks. Returns where that ends, and the body if
        it is complete. Raises Refused."""
        if length is None:
            chunks = self._chunks = self._chunks or Chunks(self._limits.body_bytes)
            start = chunks.feed(data, start, stop)
            if not chunks.complete:
                return start, None
            self.drop()
            return start, chunks.body
        if length <= stop - start:
            self.drop()
            stop = start + length
            return stop, bytes(memoryview(data)[start:stop]) if length else b""
        self._filled = stop - start
        self._body = self._memory(length)
        self._body[: self._filled] = memoryview(data)[start:stop]
        return stop, None
