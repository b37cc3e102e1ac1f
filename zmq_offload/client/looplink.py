"""A connection to the brokers that belongs to an event loop, without libzmq: no thread, and few system calls.

The loop reads and writes the socket itself and `zmq_offload.net.zmtp` knows the protocol. It has no keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import zmq

from zmq_offload.client.link import Watched, decoded, in_place
from zmq_offload.client.session import Payload, RetryPolicy, Send
from zmq_offload.net import addresses, transport
from zmq_offload.net.endpoints import check_brokers
from zmq_offload.net.frames import Buffer, encode, read_heads
from zmq_offload.net.handshake import FAILURES, MISMATCH
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.net.stream import Stream
from zmq_offload.net.zmtp import HELLO, Broken, Peer, Refused
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire

if TYPE_CHECKING:
    from zmq_offload.protocol.packed import Packed

_HIGH, _LOW = 4 * 1024 * 1024, 1024 * 1024
"""Bytes that are not written yet. At the first number requests wait, and at the second they are sent again."""

_JOINED_BYTES = 64 * 1024
"""Bytes of a turn of the loop that are joined to one buffer: the copy costs less than a list of buffers."""

_inherited: list[object] = []
"""Connections of the parent process, which a forked child does not touch."""


class LoopLink(Watched):
    """A connection of the running event loop. A call's inputs may still be read when it has ended, as they are by a
    `Connection` that does not reclaim them.

    While there is no connection, requests wait until their calls end. `sharing` passes long tensors through shared
    memory if the broker is on this host.
    """

    way: _Way | None
    gathers = True

    def __init__(
        self,
        broker: str | Sequence[str],
        policy: RetryPolicy | None,
        max_frame_bytes: int,
        sharing: Sharing | None = None,
    ) -> None:
        super().__init__(check_brokers(broker), policy, max_frame_bytes)
        self.sharing = sharing
        self.most_bytes = max(self._max_frame_bytes, limits.UNASKED_BYTES)
        self.ready: Callable[[], None] = _nothing
        self.inbox: list[list[Buffer]] = []
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, Send] = {}  # by the call's number; 0 is that of the last Ping
        self._out: list[Buffer] = []  # what the loop's turn has brought
        self.way = None
        self._writable = False  # whether requests may be written to it
        self._again: asyncio.TimerHandle | None = None
        self._delay = transport.RECONNECT
        self._failures = 0  # handshakes in a row that failed
        self._refusal: str | None = None
        self._open()

    # --- what the driver calls ------------------------------------------------------------------------------

    @property
    def emptied(self) -> bool:
        return True

    def _open(self) -> None:
        self.is_open = True
        self._failures, self._refusal, self._delay = 0, None, transport.RECONNECT
        self._dial()

    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        self.ready = ready

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ready = _nothing

    def send(self, action: Send) -> None:
        message = action.message
        if not self._writable:
            if isinstance(message, (wire.Request, wire.Query)):
                self._waiting[message.id] = action
                return
            if isinstance(message, wire.Ping):
                self._waiting[0] = action
                return
            if self._waiting.pop(message.id, None) is not None or self.way is None or not self.way.is_ready:
                return  # the broker has not got what is canceled
        frames = [wire.encode(message), *action.payload]
        if self.sharing is not None and self.way is not None and self.way.shares:
            frames = self.sharing.lent(frames)
        self._out += encode(frames)

    def flush(self) -> None:
        out, self._out = self._out, []
        if out and self.way is not None:
            self.way.write(out if sum(map(len, out)) > _JOINED_BYTES else [b"".join(out)])

    def waiting(self) -> bool:
        return bool(self.inbox)

    def receive(self, most: int) -> list[tuple[wire.ToClient, Sequence[object]]]:
        inbox, self.inbox = self.inbox, []
        messages: list[tuple[wire.ToClient, Sequence[object]]] = []
        for frames in map(read_heads, inbox):
            message = decoded(cast("bytes", frames[0]))
            if message is not None:
                messages.append(in_place(self.sharing, message, frames[1:]))
        return messages

    def refusal(self) -> str | None:
        return None if self._refusal is None else f"the broker at {self.endpoint} {self._refusal}"

    def still_lent(self, number: int) -> Sequence[zmq.MessageTracker | Stream]:
        if self._waiting:
            self._waiting.pop(number, None)
        return ()

    def reclaim(self, lent: Sequence[zmq.MessageTracker | Stream]) -> None:
        raise AssertionError("nothing is lent")

    def reset(self) -> None:
        self._shut()

    def close(self, linger: int = 100) -> None:
        if linger and self._writable and self.way is not None:
            self.way.finish(linger / 1000)
            self.way = None
        self._shut()

    def forget(self) -> None:
        self.is_open = self._writable = False
        _inherited.append((self.way, self._again))
        self.way = self._again = None

    def packed_request(
        self,
        model: str,
        inputs: Packed,
        version: int | None,
        timeout: float,
        priority: int,
        label: str | None = None,
    ) -> tuple[str, Payload, float, int, int, bytes, str]:
        arguments = super().packed_request(model, inputs, version, timeout, priority, label)
        if self.sharing is None or self.way is None or not self.way.shares or len(arguments[1]) == 1:
            return arguments
        return model, self.sharing.placed(arguments[1]), *arguments[2:]

    # --- the connection -------------------------------------------------------------------------------------

    def _shut(self) -> None:
        self.is_open = self._writable = False
        self._waiting.clear()
        self._out = []
        self.inbox.clear()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        way, self.way = self.way, None
        if way is not None:
            way.abort()

    def _dial(self) -> None:
        self._again = None
        self.way = _Way(self, self.endpoint, self._loop)

    def connected(self, way: _Way) -> None:
        """The handshake is over."""
        if way is self.way:
            self._failures, self._refusal, self._delay = 0, None, transport.RECONNECT
            self.writable(way)

    def writable(self, way: _Way, *, now: bool = True) -> None:
        """Messages may be written, or not any more."""
        if way is not self.way:
            return
        self._writable = now
        if now:
            waiting, self._waiting = self._waiting, {}
            for action in waiting.values():
                self.send(action)
            self.flush()

    def lost(self, way: _Way, refusal: str | None, *, shook: bool) -> None:
        """There is no connection any more, or none was made. `shook`: it ended in its handshake."""
        if way is not self.way:
            return
        self.way, self._writable, self._out = None, False, []
        if shook:
            self._failures += 1
        self._refusal = refusal or (MISMATCH if self._failures >= FAILURES else None)
        if refusal:
            return  # the session tells all calls, and the next call connects
        # As libzmq does: not all clients of a broker that comes back at the same moment.
        self._again = self._loop.call_later(self._delay + random.random() * transport.RECONNECT, self._dial)
        self._delay = min(2 * self._delay, transport.RECONNECT_MOST)


class _Way(asyncio.BufferedProtocol):
    """One connection, from the attempt to make it to its end."""

    def __init__(self, link: LoopLink, endpoint: str, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self._loop = loop
        self._peer = Peer(link.most_bytes, limits.FRAMES, transport.CLIENTS_HEARTBEAT, sharer=link.sharing)
        self._transport: asyncio.Transport | None = None
        self._why: str | None = None
        self._over = False
        self._task: asyncio.Task[None] | None = loop.create_task(self._connect(endpoint))
        self._timer = loop.call_later(transport.HANDSHAKE, self._late)

    @property
    def is_ready(self) -> bool:
        """Whether the handshake is over."""
        return self._peer.is_ready

    @property
    def shares(self) -> bool:
        """Whether the broker takes references to shared memory."""
        return self._peer.shares

    def write(self, buffers: Sequence[Buffer]) -> None:
        assert self._transport is not None
        self._transport.writelines(buffers)

    async def _connect(self, endpoint: str) -> None:
        try:
            await _connect(self._loop, lambda: self, endpoint)
        except (OSError, UnicodeError):  # UnicodeError: of a name like a..b
            self._end(shook=False)
        finally:
            self._task = None

    def abort(self) -> None:
        """Drop the connection and what is queued in it."""
        self._over = True
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    def finish(self, seconds: float) -> None:
        """Write what is queued, and close."""
        self._over = True
        self._timer.cancel()
        if self._transport is not None:
            self._transport.close()
            self._loop.call_later(seconds, self._transport.abort)

    def _end(self, *, shook: bool) -> None:
        if not self._over:
            self.abort()
            self._link.lost(self, self._why, shook=shook)

    def _late(self) -> None:
        """The handshake takes too long."""
        self._end(shook=self._transport is not None)

    def _tick(self) -> None:
        ping = self._peer.tick()
        if ping is None:
            self._end(shook=False)
            return
        if ping:
            self.write([ping])
        self._timer = self._loop.call_later(transport.CLIENTS_HEARTBEAT, self._tick)

    # --- what the transport calls ---------------------------------------------------------------------------

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", made)
        if self._over:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(_HIGH, _LOW)
        self.write([HELLO])

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(shook=not self._peer.is_ready)

    def pause_writing(self) -> None:
        self._link.writable(self, now=False)

    def resume_writing(self) -> None:
        if self._peer.is_ready:
            self._link.writable(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._peer.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._over:
            return
        peer, was_ready = self._peer, self._peer.is_ready
        try:
            messages = peer.received(nbytes)
        except Broken as broken:
            self._why = MISMATCH if isinstance(broken, Refused) else None
            self.write(peer.answers)
            self._end(shook=not was_ready)
            return
        if peer.answers:
            self.write(peer.answers)
            peer.answers = []
        if peer.is_ready and not was_ready:
            self._timer.cancel()
            self._timer = self._loop.call_later(transport.CLIENTS_HEARTBEAT, self._tick)
            self._link.connected(self)
        if messages:
            self._link.inbox += messages
            self._link.ready()


async def _connect(loop: asyncio.AbstractEventLoop, factory: Callable[[], _Way], endpoint: str) -> None:
    """Connect to tcp://HOST:PORT, over IPv4 if the host has such an address, or to ipc://PATH."""
    host = addresses.host_of(endpoint)
    if host is None:
        # uvloop's own way to connect reads an abstract name as an empty path.
        with contextlib.ExitStack() as stack:
            connected = stack.enter_context(socket.socket(socket.AF_UNIX))
            connected.setblocking(False)
            await loop.sock_connect(connected, addresses.unix_address(endpoint))
            await loop.create_unix_connection(factory, sock=connected)
            stack.pop_all()
        return
    port = int(endpoint.rpartition(":")[2])
    found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    *others, last = [str(place[0]) for _, place in addresses.of_one_family(found)]
    for address in others:
        with contextlib.suppress(OSError):
            await loop.create_connection(factory, address, port)
            return
    await loop.create_connection(factory, last, port)


def _nothing() -> None:
    """Nobody watches."""
