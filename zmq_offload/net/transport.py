"""ZeroMQ sockets as client, broker and workers use them: options, endpoints, sending and receiving."""

from __future__ import annotations

import contextlib
import itertools
import re
import select
import signal
import socket as socketlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import zmq

from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.net import addresses, ipc
from zmq_offload.net.pyzmq_internals import Sendable, send_frame
from zmq_offload.protocol import limits

# Plain numbers: combining members of an enum.Flag costs more than sending a small frame.
POLLIN = int(zmq.POLLIN)
_DONTWAIT = int(zmq.DONTWAIT)
_DONTWAIT_SNDMORE = int(zmq.DONTWAIT | zmq.SNDMORE)

Frames: TypeAlias = list[Any]
"""A received message: two frames as bytes (identity and envelope, or envelope and header), the others as `zmq.Frame`,
whose memory belongs to libzmq."""

LENT = 512 * 1024
"""Bytes from which a buffer is lent to libzmq instead of copied. Returning lent memory goes through a thread of pyzmq,
which costs as much as copying this many bytes. (pyzmq's COPY_THRESHOLD of 64 KiB does not apply to Frames.)"""

HANDSHAKE = 5.0
"""Seconds for a handshake. libzmq's default of 30 s is long for a stranger to hold memory."""

RECONNECT, RECONNECT_MOST = 0.05, 1.0
"""Seconds until a lost connection is made again: after the first failure, and after many."""

CLIENTS_HEARTBEAT = 5.0
"""Seconds between ZMTP heartbeats of a client and its broker. A client that waits for a reply sends Pings of its own
(`zmq_offload.client.session`); heartbeats find out about idle clients. At an interval of 0.5 s those of 2,000 idle
clients took 15 % of a core in the broker, at 5 s they take 2 %."""

_IPC_PEER = re.compile(r"\w+:\d+:\d+:(\d+)")
"""How libzmq writes the other end of a Unix socket: a name, and the numbers of its user, group and process."""

_LAST_PORT = 65535
_ENDPOINT = re.compile(
    r"tcp://(\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[^\s:/\[\]]+|\*):([0-9]{1,5}|\*)|ipc://\S+|inproc://\S+"
)


def check_endpoint(text: str) -> str:
    """Return `text` if it is a ZeroMQ endpoint. Raises InvalidArgument otherwise."""
    match = _ENDPOINT.fullmatch(text)
    if not match or (match[2] and match[2] != "*" and int(match[2]) > _LAST_PORT):
        raise InvalidArgument(f"endpoint {text!r}: {_fault(text)}use tcp://HOST:PORT (or ipc://PATH)")
    return text


def _fault(text: str) -> str:
    """Say what is wrong, with "; " after it."""
    scheme, separator, place = text.partition("://")
    host, colon, port = place.rpartition(":")
    if any(map(str.isspace, text)):
        return "it has a space; "
    if not separator:
        return "the transport is missing; " if text else "it is empty; "
    if scheme not in ("tcp", "ipc", "inproc"):
        known = f"write {scheme.lower()}" if scheme.lower() in ("tcp", "ipc") else "use tcp or ipc"
        return f"transport {scheme!r} is not known, {known}; "
    if scheme != "tcp":
        return "the path is missing; "
    if "/" in place:
        return "a path or slash does not belong there; "
    if ":" in host and not host.startswith("["):
        return "an IPv6 address needs brackets; "
    if not colon or not port or place.endswith("]"):
        return "the port is missing; "
    if not host:
        return "the host is missing; "
    if not (port.isascii() and port.isdecimal() and int(port[:6]) <= _LAST_PORT):
        return f"the port is not a number from 0 to {_LAST_PORT}; "
    return "this is not an endpoint; "


def make_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    *,
    max_frame_bytes: int,
    heartbeat: float,
    high_water_mark: int = 0,
) -> zmq.Socket[bytes]:
    """Make a socket with this project's options.

    `heartbeat` is the interval of ZMTP heartbeats in seconds. libzmq's I/O thread exchanges them, and closes a
    connection whose other end misses three. `high_water_mark` 0 queues without bound.

    libzmq closes a connection silently when the other end begins a frame over the limit. The limit is therefore
    `max_frame_bytes`, but at least `limits.UNASKED_BYTES`: a peer that does not know this end's limit yet gets an error
    message instead.
    """
    socket: zmq.Socket[bytes] = context.socket(kind)
    interval = max(1, round(heartbeat * 1000))
    socket.linger = 0
    socket.setsockopt(zmq.HEARTBEAT_IVL, interval)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * interval)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 3 * interval)
    socket.setsockopt(zmq.MAXMSGSIZE, max(max_frame_bytes, limits.UNASKED_BYTES))
    socket.setsockopt(zmq.HANDSHAKE_IVL, round(HANDSHAKE * 1000))
    socket.setsockopt(zmq.SNDHWM, high_water_mark)
    socket.setsockopt(zmq.RCVHWM, high_water_mark)
    socket.setsockopt(zmq.RECONNECT_IVL, round(RECONNECT * 1000))
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, round(RECONNECT_MOST * 1000))
    if kind == zmq.ROUTER:
        # Otherwise a message to a peer that has left, or whose pipe is full, is dropped silently.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return socket


def connect(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Connect, now or when the other end comes up. A host name may have IPv4 or IPv6 addresses.

    Raises InvalidArgument for an endpoint that one can only bind to, and for a path that is too long.
    """
    socket.setsockopt(zmq.IPV6, int(addresses.needs_ipv6(endpoint)))
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise InvalidArgument(f"cannot connect to {endpoint}: {zmq.strerror(error.errno or 0)}") from None


def bind(socket: zmq.Socket[bytes], endpoint: str) -> tuple[str, ipc.SocketFile | None]:
    """Bind, and return the endpoint with its port, and its file (to be removed at the end) if it has one.

    The host is an address, `*` (IPv4), the name of a network interface, or a host name of this machine; `[::]` accepts
    IPv4, too. Raises FailedPrecondition if the address is taken or belongs to another machine.
    """
    numeric = addresses.to_bind(check_endpoint(endpoint))
    socket.setsockopt(zmq.IPV6, int("[" in numeric))
    try:
        file = ipc.bind(endpoint, lambda: socket.bind(numeric))
    except zmq.ZMQError as error:
        code = error.errno or 0
        raise FailedPrecondition(
            f"cannot bind to {endpoint}: {addresses.why_not_bound(code, zmq.strerror(code))}"
        ) from None
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"), file


def monitor(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Return a socket from which to `receive` these events of `socket`.

    End it by `socket.disable_monitor()` and its own `close`. It queues without bound, unlike `get_monitor_socket`'s:
    while a monitor is full, libzmq's I/O thread waits, and with it all connections. 2000 refused connections would stop
    a broker, and `disable_monitor` would wait forever.
    """
    endpoint = f"inproc://monitor-{id(socket)}-{next(_numbers)}"
    socket.monitor(endpoint, events)
    reader: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    reader.setsockopt(zmq.RCVHWM, 0)  # before it connects
    reader.connect(endpoint)
    return reader


_numbers = itertools.count()


class Wake:
    """Ends another thread's poll. Any thread or signal handler may `set` it; the thread that polls it calls `clear`."""

    def __init__(self) -> None:
        self._read, self._write = socketlib.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._of_signals = False

    def fileno(self) -> int:
        return self._read.fileno()

    def set(self) -> None:
        # If the socket is full, it is readable; if it is closed, nobody polls it any more.
        with contextlib.suppress(BlockingIOError, OSError):
            self._write.send(b"x")

    def set_on(self, number: int) -> None:
        """Let a signal set it, in place of doing what it does. Only the main thread may call this.

        A handler in Python would run too late for a signal that arrives just before a poll: when the poll ends.
        """
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._of_signals = True
        signal.signal(number, lambda *_: None)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)

    def close(self) -> None:
        if self._of_signals:  # or Python would write to the next file that gets this descriptor
            signal.set_wakeup_fd(-1)
        self._read.close()
        self._write.close()


class Peer(bytes):
    """A ROUTER's name for a connection, with the public key of the peer."""

    user: str
    frame: zmq.Frame
    """The name as a frame, from which `address_of` reads the address. That costs as much as receiving, so it is done
    on demand."""


def _peer(frame: zmq.Frame) -> Peer:
    peer = Peer(frame.bytes)
    peer.user = str(frame.get("User-Id"))
    peer.frame = frame
    return peer


def address_of(frame: zmq.Frame) -> str:
    """Return the sender's IP address, "pid 123" for an ipc peer, or "" if that is not known."""
    try:
        address = str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return ""
    ipc_peer = _IPC_PEER.fullmatch(address)
    return f"pid {ipc_peer[1]}" if ipc_peer else address


def receive_from(socket: zmq.Socket[bytes]) -> Frames | None:
    """Receive as `receive` does, from a socket with keys: the first frame is a `Peer`."""
    try:
        frame = socket.recv(zmq.DONTWAIT, copy=False)
    except zmq.Again:
        return None
    return [_peer(frame), *(receive(socket) or ())] if frame.more else [_peer(frame)]


def receive(socket: zmq.Socket[bytes]) -> Frames | None:
    """Receive one message without waiting, or return None."""
    try:
        frame = socket.recv(_DONTWAIT, False)
    except zmq.Again:
        return None
    # A frame knows whether others follow; asking the socket (RCVMORE) costs as much as receiving.
    frames: Frames = [frame.bytes]
    if frame.more:
        frame = socket.recv(0, False)
        frames.append(frame.bytes)
        while frame.more:
            frame = socket.recv(0, False)
            frames.append(frame)
    return frames


_ONE_BY_ONE = 4
"""Waits after which messages count as coming one by one."""


class Inbox:
    """Reads the messages that have arrived at a socket, after a poll said that there is at least one.

    Finding out that there are no more costs as much as receiving several, if `recv` raises; a poll costs a fifth of
    that. So a socket that had one message last time is polled after each message, and a socket that had several is read
    until `recv` raises.
    """

    def __init__(self, socket: zmq.Socket[bytes], *, keyed: bool = False) -> None:
        self.socket = socket
        self._receive = receive_from if keyed else receive
        self._source = [(socket, POLLIN)]
        self._busy = False
        self.emptied = False
        """Whether the last `take` found that there were no more."""

    def take(self, most: int) -> list[Frames]:
        """Return up to `most` messages, as `receive` does."""
        receive, socket = self._receive, self.socket
        messages: list[Frames] = []
        self.emptied = False
        while len(messages) < most:
            frames = receive(socket)
            if frames is None:
                self._busy = len(messages) > 1
                self.emptied = True
                break
            messages.append(frames)
            if not self._busy:
                if len(messages) == most:
                    break
                if not self.waiting():
                    self.emptied = True
                    break
                self._busy = True
        return messages

    def take_after(self, polled: Poll, most: int) -> list[Frames]:
        """Return up to `most` messages, but only one while messages come one by one: `polled` will find others."""
        return self.take(1 if polled.waits > _ONE_BY_ONE and not self._busy else most)

    def waiting(self) -> bool:
        """Whether a message has arrived."""
        return bool(zmq.zmq_poll(self._source, 0))


class Poll:
    """Waits for messages at inboxes, and for other descriptors.

    libzmq's own poll asks each socket before it waits and again afterwards, with a system call each. This asks once,
    and then waits for the sockets' descriptors. A descriptor tells only of what comes after its socket was asked or
    used, so nothing may come between.
    """

    def __init__(self, inboxes: Sequence[Inbox], descriptors: Sequence[int]) -> None:
        self._sockets = [(inbox.socket, POLLIN) for inbox in inboxes]
        self._inboxes: dict[object, Inbox] = {inbox.socket: inbox for inbox in inboxes}
        self._by_descriptor: dict[int, Inbox | int] = {number: number for number in descriptors}
        self._by_descriptor |= {int(inbox.socket.getsockopt(zmq.FD)): inbox for inbox in inboxes}
        self._poll = select.poll()
        for number in self._by_descriptor:
            self._poll.register(number, select.POLLIN)
        self.waits = 0
        """The last calls of `wait`, without a break, that found no message there already."""

    def wait(self, milliseconds: int) -> list[Inbox | int]:
        """Wait, at most so long (-1: without a limit). Returns descriptors that are ready, and inboxes that may have
        messages."""
        ready = zmq.zmq_poll(self._sockets, 0)
        found = self._by_descriptor
        if not ready:
            self.waits += 1
            return [found[number] for number, _ in self._poll.poll(milliseconds)]
        self.waits = 0
        others = [found[number] for number, _ in self._poll.poll(0)]
        return [other for other in others if type(other) is int] + [self._inboxes[socket] for socket, _ in ready]


def forward(socket: zmq.Socket[bytes], frames: Sequence[Sendable]) -> None:
    """Send a message without waiting and without lending memory: a `zmq.Frame` is passed on, all else is copied."""
    for frame in frames[:-1]:
        send_frame(socket, frame, _DONTWAIT_SNDMORE)
    send_frame(socket, frames[-1], _DONTWAIT)


def send(socket: zmq.Socket[bytes], frames: Sequence[Sendable], *, track: bool = False) -> Sequence[zmq.MessageTracker]:
    """Send a message without waiting.

    A `zmq.Frame` is passed on. Bytes are copied, and so is a memoryview (of bytes) shorter than `LENT`. A longer one is
    lent: libzmq reads its memory, which must not change meanwhile. With `track`, a tracker is returned for each; it is
    done when the memory is free again.

    Raises zmq.Again if the pipe is full, and zmq.ZMQError (EHOSTUNREACH) if a ROUTER does not know the peer.
    """
    trackers: list[zmq.MessageTracker] = []
    if max(map(len, frames)) >= LENT:
        frames = [*frames]
        for at, frame in enumerate(frames):
            if type(frame) is memoryview and len(frame) >= LENT:
                # Not by send_multipart, which tracks the last frame only.
                lent = zmq.Frame(frame, track=track, copy=False)
                if lent.tracker is not None:
                    trackers.append(lent.tracker)
                frames[at] = lent
    forward(socket, frames)
    return trackers
