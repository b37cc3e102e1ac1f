"""One connection that speaks ZMTP on a plain socket, without libzmq: what came, what is to be sent, and its heartbeat.

It never waits. Whoever polls the socket calls `receive` when it is readable and `flush` when it is writable, and polls
for writing only while `blocked`.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from collections import deque
from collections.abc import Sequence

from zmq_offload.net.frames import Buffer, append
from zmq_offload.net.pieces import PIECE_BYTES, Leaving
from zmq_offload.net.zmtp import HELLO, Peer

_JOINED_BYTES = 64 * 1024
"""So many bytes are joined to one buffer: the copy costs less than a list of buffers."""

_BUFFERS = 512
"""Buffers that are written at once. Linux takes 1024."""

_UNIX_BYTES = 512 * 1024
"""Bytes, half of what the kernel counts, that a Unix socket may hold; the system may allow less. TCP's buffers grow by
themselves. With 200 KB, many messages of 40 KB at once take a third longer."""

_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)

_WHOLE_BYTES = 2 * 1024 * 1024
"""Up to so many queued bytes, messages are sent whole: to cut them would cost more than short ones wait for them."""

_TURN_BYTES = 4 * 1024 * 1024
"""Bytes in pieces that are written or received before it is the turn of other connections, and a piece more."""

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

    __slots__ = (
        "_ends",
        "_later",
        "_most",
        "_most_bytes",
        "_out",
        "_piece_bytes",
        "_piece_end",
        "_put",
        "_recv_into",
        "_recvmsg_into",
        "_unsent",
        "_writable",
        "_written",
        "blocked",
        "filled",
        "peer",
        "position",
        "socket",
    )

    def __init__(self, connected: socket.socket, peer: Peer, most: int = 256, most_bytes: int | None = None) -> None:
        connected.setblocking(False)
        if connected.family == socket.AF_UNIX:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BYTES)
        else:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self.peer = peer
        self.blocked = False
        """Whether something waits for now that the kernel does not take, or for its turn, so that the socket is to be
        polled for writing."""
        self.filled = False
        """Whether the last `receive` took as much as it had room for, so that more is there most likely."""
        self.position = 0
        """Where the last message is that was put."""
        self._recv_into, self._recvmsg_into = connected.recv_into, connected.recvmsg_into
        self._most = most
        self._most_bytes = math.inf if most_bytes is None else most_bytes
        self._out: list[Buffer] = [HELLO]
        self._put = len(HELLO)  # bytes that were ever queued there
        self._written = 0  # bytes of them that the kernel took
        self._ends: deque[int] = deque()  # of the queued messages, as values of `_put`
        self._later: Leaving | None = None  # long messages, of which a piece is queued after the other
        self._unsent = 0  # bytes that may be in the kernel and not on their way; 0 for any number
        self._piece_bytes = 0  # of the last piece
        self._piece_end = 0  # where it ends, as a value of `_put`

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def queued(self) -> int:
        """Bytes that the kernel did not take yet."""
        return self._put - self._written + self.queued_in_pieces

    @property
    def queued_in_pieces(self) -> int:
        """Bytes of them that are sent in pieces, between which others pass."""
        return 0 if self._later is None else self._later.waiting_bytes

    def has_written(self, position: int) -> bool:
        """Whether the kernel took the message of that `position`."""
        if position >= 0:
            return self._written >= position
        # A piece is cut off when the one before it is written.
        unwritten = min(self._piece_bytes, max(0, self._piece_end - self._written))
        return self._later is None or self._later.cut_bytes - unwritten >= -position

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
            space = len(room)
            try:
                # What follows the rest of a frame comes with it: else each such rest would take a turn of its own. What
                # follows that of a piece is most likely the head of the next one.
                aside = peer.scratch if peer.is_in_frame else peer.aside if peer.is_in_piece else None
                if aside is not None:
                    space += len(aside)
                    count = self._recvmsg_into([room, aside])[0]
                else:
                    count = self._recv_into(room)
            except BlockingIOError:
                self.filled = False
                return []
            self.filled = count == space
            if not count:
                raise Ended("the other end closed the connection")
            if count <= len(room):
                messages = peer.received(count)
            else:
                messages = peer.received(len(room))
                messages += peer.received(count - len(room))
            if self.filled and not messages and peer.is_amid_pieces:
                messages = self._receive_pieces()
        if peer.answers:
            self._answer()
        return messages

    def _receive_pieces(self) -> list[list[Buffer]]:
        """Go on until messages are complete, no more bytes are there, or it is the turn of other connections."""
        peer, messages, came, more = self.peer, [], 0, True
        while more and came < _TURN_BYTES:
            room = peer.buffer()
            asked = len(room)
            try:
                if peer.is_in_piece:
                    # What follows the rest of a piece is most likely the head of the next one.
                    asked += len(peer.aside)
                    count = self._recvmsg_into([room, peer.aside])[0]
                else:
                    count = self._recv_into(room)
            except OSError:  # none are there; an end is found by the next `receive`
                break
            if not count:
                break
            came += count
            messages = peer.received(min(count, len(room)))
            if count > len(room):
                messages += peer.received(count - len(room))
            self.filled = count == asked  # else no more bytes are there now
            more = self.filled and not messages and peer.is_amid_pieces
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
        later = self._later
        if later is not None:
            if self._is_full(later) and not self._make_room(later):
                return False
        elif (len(self._ends) >= self._most or self._put - self._written >= self._most_bytes) and (
            self.blocked or not self.flush()
        ):
            return False
        out = self._out
        count = len(out)
        size = append(out, frames)
        if (size > PIECE_BYTES and self.peer.takes_pieces and self.queued + size > _WHOLE_BYTES) or (
            later is not None and later.messages and len(frames) == 1
        ):
            self._put_later(out[count:], size)
            del out[count:]
            return True
        self._put += size
        self.position = self._put
        self._ends.append(self._put)
        return True

    def _is_full(self, later: Leaving) -> bool:
        return len(self._ends) + later.messages >= self._most or self.queued >= self._most_bytes

    def _make_room(self, later: Leaving) -> bool:
        """Write what the kernel takes. Whether a message more may be queued."""
        while self._is_full(later):
            before = self._written
            if not self.flush() and self._written == before:
                return False
        return True

    def _put_later(self, buffers: list[Buffer], size: int) -> None:
        """Queue a message that is sent in pieces, or that must not overtake one that is."""
        if self._later is None:
            self._later = Leaving()
            self._writable = select.poll()
            self._writable.register(self.socket, select.POLLOUT)
            self._bound(PIECE_BYTES)
        self._later.put(buffers, size)
        self.position = -self._later.put_bytes

    def _bound(self, unsent: int) -> None:
        """Let the kernel take nothing while more bytes than this are not on their way: a short message would have to
        wait for them, too."""
        self._unsent = unsent
        if self.socket.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, unsent)

    def flush(self) -> bool:
        """Write what the kernel takes, but not more than some pieces. Whether that is all."""
        if self._later is not None and self._later.messages:
            return self._flush_pieces(self._later)
        return self._write()

    def _flush_pieces(self, later: Leaving) -> bool:
        end = self._put + _TURN_BYTES
        while self._put < end:
            if self._written >= self._piece_end:
                buffers, size = later.cut(time.monotonic())
                if later.length != self._unsent:
                    self._bound(later.length)
                self._out += buffers
                self._put += size
                self._piece_bytes, self._piece_end = size, self._put
            if not self._write() or not later.messages or self._put >= end:
                break
            # Whether less waits in the kernel than `_bound` says. It would take much more.
            if not self._writable.poll(0):
                break
        self.blocked = self.blocked or later.messages > 0
        return not self.blocked

    def _write(self) -> bool:
        """Write what the kernel takes of what is queued. Whether that is all."""
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
                    if self._written == self._put:
                        break
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
        self._later = None


def _drop(buffers: list[Buffer], count: int) -> None:
    """Remove the first `count` bytes."""
    at = 0
    while at < len(buffers) and count >= len(buffers[at]):
        count -= len(buffers[at])
        at += 1
    del buffers[:at]
    if count:
        buffers[0] = memoryview(buffers[0])[count:]
