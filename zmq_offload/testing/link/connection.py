"""A connection through the relay: two sockets, and a pipe in each direction."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
from collections import deque

from zmq_offload.testing.link.path import Path

_RESET = struct.pack("ii", 1, 0)  # struct linger: closing resets the connection

_UNREAD = 1 << 20
"""Bytes that have arrived and that the receiver has not read. Above this, the relay stops reading the sender."""


class Pipe:
    """One direction: from a socket through a path to the other socket."""

    def __init__(self, connection: Connection, source: socket.socket, sink: socket.socket, path: Path[Pipe]) -> None:
        self.connection = connection
        self.source, self.sink, self.path = source, sink, path
        self._unread: deque[memoryview] = deque()
        self._bytes = 0
        self._source_ended = self._ending = self.ended = False

    def wants_to_read(self, now: float) -> bool:
        return not self._source_ended and self._bytes < _UNREAD and self.path.has_room(now)

    def wants_to_write(self) -> bool:
        return bool(self._unread)

    def read(self, now: float) -> None:
        """Read from the source. Raises OSError if its connection is lost."""
        try:
            data = self.source.recv(self.path.step)
        except BlockingIOError:
            return
        self._source_ended = not data
        self.path.take(self, data, now)

    def push(self, data: bytes) -> None:
        """Take bytes that have arrived. Empty `data` is the end."""
        if data:
            self._unread.append(memoryview(data))
            self._bytes += len(data)
        else:
            self._ending = True

    def write(self) -> None:
        """Write to the sink as much as it takes. Raises OSError if its connection is lost."""
        while self._unread:
            first = self._unread[0]
            try:
                sent = self.sink.send(first)
            except BlockingIOError:
                return
            self._bytes -= sent
            if sent < len(first):
                self._unread[0] = first[sent:]
            else:
                self._unread.popleft()
        if self._ending and not self.ended:
            self.ended = True
            self.sink.shutdown(socket.SHUT_WR)


class Connection:
    """A client's connection, `near`, and the relay's own to the target, `far`; `connected` once that is made."""

    def __init__(self, near: socket.socket, far: socket.socket, there: Path[Pipe], back: Path[Pipe]) -> None:
        self.near, self.far = near, far
        self.connected = False
        self.pipes = Pipe(self, near, far, there), Pipe(self, far, near, back)
        self.watched = {near: 0, far: 0}
        """The events that the relay waits for, by socket."""
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wanted(self, now: float) -> dict[socket.socket, int]:
        """Return the events to wait for, by socket."""
        if not self.connected:
            return {self.near: 0, self.far: selectors.EVENT_WRITE}
        masks = {self.near: 0, self.far: 0}
        for pipe in self.pipes:
            if pipe.wants_to_read(now):
                masks[pipe.source] |= selectors.EVENT_READ
            if pipe.wants_to_write():
                masks[pipe.sink] |= selectors.EVENT_WRITE
        return masks

    def ready(self, end: socket.socket, mask: int, now: float) -> None:
        """Read and write after an event. Raises OSError if one of the connections is lost."""
        if not self.connected:
            error = self.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "the far end cannot be reached")
            self.connected = True
        for pipe in self.pipes:
            if pipe.source is end and mask & selectors.EVENT_READ and pipe.wants_to_read(now):
                pipe.read(now)
            if pipe.sink is end and mask & selectors.EVENT_WRITE:
                pipe.write()

    @property
    def ended(self) -> bool:
        return all(pipe.ended for pipe in self.pipes)

    def close(self) -> None:
        """Close both sockets. Connections that the peers have not ended are reset, as on a real link."""
        for end in (self.near, self.far):
            if not self.ended:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()
