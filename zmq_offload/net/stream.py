"""One connection that speaks ZMTP on a plain socket, without libzmq: what came, what is to be sent, and its heartbeat.

It never waits. Whoever polls the socket calls `receive` when it is readable and `flush` when it is writable, and polls
for writing only while `blocked`.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections import deque
from collections.abc import Sequence

from zmq_offload.net.zmtp import HELLO, Buffer, Peer, append

_JOINED_BYTES = 64 * 1024
"""So many bytes are joined to one buffer: the copy costs less than a list of buffers."""

_BUFFERS = 512
"""Buffers that are written at once. Linux takes 1024."""

_ANSWERED_BYTES = 4096
"""While the kernel takes nothing and more bytes than this are queued, a PING is not answered: a peer that sends PINGs
and reads nothing would fill the queue. What it has not read yet says that this end lives, as a PONG would."""


class Ended(ConnectionError):
    """The other end closed the connection."""


class Stream:
    """A connected socket, or one that is being connected, with its peer and its queue.

    The first call is `flush`, which greets. Messages may be put when `peer.is_ready`. At most `most` messages are
    queued, and no further one while `most_bytes` are. All methods that use the socket raise OSError when the connection
    has ended.
    """

    __slots__ = ("_ends", "_most", "_most_bytes", "_out", "_put", "_recv_into", "_written", "blocked", "peer", "socket")

    def __init__(self, connected: socket.socket, peer: Peer, most: int = 256, most_bytes: int | None = None) -> None:
        connected.setblocking(False)
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self.peer = peer
        self.blocked = False
        """Whether the kernel takes no more bytes for now, so that the socket is to be polled for writing."""
        self._recv_into = connected.recv_into
        self._most = most
        self._most_bytes = math.inf if most_bytes is None else most_bytes
        self._out: list[Buffer] = [HELLO]
        self._put = len(HELLO)  # bytes that were ever queued
        self._written = 0  # bytes that the kernel took
        self._ends: deque[int] = deque()  # of the queued messages, as values of `_put`

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def queued(self) -> int:
        """Bytes that the kernel did not take yet."""
        return self._put - self._written

    @property
    def position(self) -> int:
        """Bytes that were ever queued."""
        return self._put

    def has_written(self, position: int) -> bool:
        """Whether the kernel took all bytes up to that `position`."""
        return self._written >= position

    def receive(self) -> list[list[Buffer]]:
        """Receive once, unless `peer.has_more`. Returns the messages that are complete; each is a list of frames.

        Answers of the handshake and to PINGs are written. Raises Broken if the other end does not speak the protocol,
        and OSError (Ended) if the connection has ended.
        """
        peer = self.peer
        room = peer.buffer()
        if peer.has_more:
            messages = peer.received(0)
        else:
            try:
                count = self._recv_into(room)
            except BlockingIOError:
                return []
            if not count:
                raise Ended("the other end closed the connection")
            messages = peer.received(count)
        if peer.answers:
            self._answer()
        return messages

    def _answer(self) -> None:
        answers, self.peer.answers = self.peer.answers, []
        if not self.blocked or self.queued <= _ANSWERED_BYTES:
            self._out += answers
            self._put += sum(map(len, answers))
            # If the other end is gone, what it sent before is returned first. The next `receive` finds its end.
            with contextlib.suppress(OSError):
                self.flush()

    def put(self, frames: Sequence[Buffer]) -> bool:
        """Queue a message, to be written by `flush`. False if too much is queued already; then it is not.

        The frames' memory must not change until they are written.
        """
        full = len(self._ends) >= self._most or self._put - self._written >= self._most_bytes
        if full and (self.blocked or not self.flush()):
            return False
        self._put += append(self._out, frames)
        self._ends.append(self._put)
        return True

    def flush(self) -> bool:
        """Write what the kernel takes. Whether that is all."""
        out = self._out
        if not out:
            return True
        try:
            if self._put - self._written <= _JOINED_BYTES:
                data = out[0] if len(out) == 1 else b"".join(out)
                count = self.socket.send(data)
                self._written += count
                if count < len(data):
                    self._out = [memoryview(data)[count:]]
            else:
                while out:
                    count = self.socket.sendmsg(out[:_BUFFERS])
                    self._written += count
                    _drop(out, count)
        except BlockingIOError:
            pass
        self.blocked = self._written < self._put
        if not self.blocked:
            self._out = []
            self._ends.clear()
            return True
        ends = self._ends
        while ends and ends[0] <= self._written:
            ends.popleft()
        return False

    def tick(self) -> bool:
        """An interval of heartbeats is over. Queues a PING if one is needed; False if the other end is gone."""
        ping = self.peer.tick()
        if ping is None:
            return False
        if ping and not self.blocked:
            self._out.append(ping)
            self._put += len(ping)
            self.flush()
        return True

    def close(self) -> None:
        """Close the socket and forget what is queued."""
        self.socket.close()
        self.peer.forget()
        self._out = []
        self._ends.clear()


def _drop(buffers: list[Buffer], count: int) -> None:
    """Remove the first `count` bytes."""
    at = 0
    while at < len(buffers) and count >= len(buffers[at]):
        count -= len(buffers[at])
        at += 1
    del buffers[:at]
    if count:
        buffers[0] = memoryview(buffers[0])[count:]
