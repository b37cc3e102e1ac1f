"""Sockets as all three packages use them: options, endpoints, and messages in and out. No decision is made here."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket as socketlib
from collections.abc import Sequence
from typing import Any

import zmq

from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.net import addresses, ipc
from zmq_offload.net.pyzmq_internals import Sendable, send_frame
from zmq_offload.protocol import limits

# Plain numbers: combining members of an enum.Flag costs more than sending a small frame.
POLLIN = int(zmq.POLLIN)
_DONTWAIT = int(zmq.DONTWAIT)
_DONTWAIT_SNDMORE = int(zmq.DONTWAIT | zmq.SNDMORE)

LENT = 512 * 1024
"""Bytes from which a buffer is sent from its own memory. Giving that back goes through a thread of pyzmq's, which costs
as much as copying so much. (pyzmq's own COPY_THRESHOLD of 64 KiB has no say: it is for copy=False, not for Frames.)"""

_HANDSHAKE_MS = 5000
"""For libzmq, whose own 30 s are a long time for a stranger to hold memory that nobody knows the sender of."""

CLIENTS_HEARTBEAT = 5.0
"""Seconds between ZMTP heartbeats of a client and its broker. A client that waits for something asks for it by itself
(`zmq_offload.client.session`); these find out about the others. They are as many as there are connections: at an
interval of half a second those of 2,000 idle clients took 15 % of a core in the broker, of 5 s they take 2 %."""

_IPC_PEER = re.compile(r"\w+:\d+:\d+:(\d+)")
"""What libzmq calls the other end of a Unix socket: a name, and the numbers of its user, group and process."""

_LAST_PORT = 65535
_ENDPOINT = re.compile(
    r"tcp://(\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[^\s:/\[\]]+|\*):([0-9]{1,5}|\*)|ipc://\S+|inproc://\S+"
)


def check_endpoint(text: str) -> str:
    """`text`, if it is a ZeroMQ endpoint; raises InvalidArgument otherwise."""
    match = _ENDPOINT.fullmatch(text)
    if not match or (match[2] and match[2] != "*" and int(match[2]) > _LAST_PORT):
        raise InvalidArgument(f"endpoint {text!r}: {_fault(text)}use tcp://HOST:PORT (or ipc://PATH)")
    return text


def _fault(text: str) -> str:
    """What people often get wrong, with "; " after it; "" for anything else."""
    scheme, separator, place = text.partition("://")
    host, colon, port = place.rpartition(":")
    if any(map(str.isspace, text)):
        return "it has a space; "
    if not separator:
        return "the transport is missing; " if text else "it is empty; "
    if scheme not in ("tcp", "ipc", "inproc"):
        known = f"write {scheme.lower()}" if scheme.lower() in ("tcp", "ipc") else "use tcp or ipc"
        return f"the transport {scheme!r} is not known, {known}; "
    if scheme != "tcp":
        return "the path is missing; "
    if "/" in place:
        return "a path, or a slash, does not belong there; "
    if ":" in host and not host.startswith("["):
        return "an IPv6 address stands in brackets; "
    if not colon or not port or place.endswith("]"):
        return "the port is missing; "
    if not host:
        return "the host is missing; "
    if not (port.isascii() and port.isdecimal() and int(port[:6]) <= _LAST_PORT):
        return f"the port is not a number from 0 to {_LAST_PORT}; "
    return ""


def make_socket(
    context: zmq.Context[Any], kind: int, *, max_frame_bytes: int, heartbeat: float, high_water_mark: int = 0
) -> zmq.Socket[bytes]:
    """A socket with this project's options.

    `heartbeat` (seconds) is the interval of ZMTP heartbeats, which libzmq's I/O thread exchanges by itself: a
    connection whose other end does not answer for three of them is closed. libzmq closes the connection, without a
    word, when the other end begins a frame over its limit. So its limit is `max_frame_bytes`, but at least
    `limits.UNASKED_BYTES`: who does not know this peer's limit yet gets an error instead, from whoever reads the frame.
    `high_water_mark` 0 queues without bound.
    """
    socket: zmq.Socket[bytes] = context.socket(kind)
    interval = max(1, round(heartbeat * 1000))
    socket.linger = 0
    socket.setsockopt(zmq.HEARTBEAT_IVL, interval)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * interval)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 3 * interval)
    socket.setsockopt(zmq.MAXMSGSIZE, max(max_frame_bytes, limits.UNASKED_BYTES))
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.SNDHWM, high_water_mark)
    socket.setsockopt(zmq.RCVHWM, high_water_mark)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    if kind == zmq.ROUTER:
        # Without it a message to a peer that is gone, or whose pipe is full, is dropped in silence.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return socket


def connect(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Connect, now or whenever the other end comes up. A host name may have IPv4 or IPv6 addresses.

    Raises InvalidArgument for what is only an endpoint to bind to, and for a path that is too long.
    """
    socket.setsockopt(zmq.IPV6, int(addresses.needs_ipv6(endpoint)))
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise InvalidArgument(f"cannot connect to {endpoint}: {zmq.strerror(error.errno or 0)}") from None


def bind(socket: zmq.Socket[bytes], endpoint: str) -> tuple[str, ipc.SocketFile | None]:
    """Bind; the endpoint with the port that it got, and its file if it has one, to be removed in the end.

    The host is an address, `*` (IPv4), the name of a network interface, or a host name of this machine; `[::]` takes
    IPv4, too. Raises FailedPrecondition where the address is taken or not this machine's.
    """
    numeric = addresses.to_bind(check_endpoint(endpoint))
    socket.setsockopt(zmq.IPV6, int("[" in numeric))
    try:
        file = ipc.bind(endpoint, lambda: socket.bind(numeric))
    except zmq.ZMQError as error:
        raise FailedPrecondition(f"cannot bind to {endpoint}: {zmq.strerror(error.errno or 0)}") from None
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"), file


def monitor(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """A socket from which to `receive` these events of `socket`; end it by `socket.disable_monitor()` and its `close`.

    It has no limit, unlike `get_monitor_socket`'s. libzmq's I/O thread waits, with all of its connections, while a
    monitor is full: 2000 refused connections would stop a broker, and `disable_monitor` would wait for ever.
    """
    endpoint = f"inproc://monitor-{id(socket)}-{next(_numbers)}"
    socket.monitor(endpoint, events)
    reader: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    reader.setsockopt(zmq.RCVHWM, 0)  # before it connects
    reader.connect(endpoint)
    return reader


_numbers = itertools.count()


class Wake:
    """Ends another thread's poll: `set` from any thread or signal handler, `clear` by the one that polls it."""

    def __init__(self) -> None:
        self._read, self._write = socketlib.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        return self._read.fileno()

    def set(self) -> None:
        # Full means that enough is there to wake; closed, that nobody polls any more.
        with contextlib.suppress(BlockingIOError, OSError):
            self._write.send(b"x")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)

    def close(self) -> None:
        self._read.close()
        self._write.close()


class Peer(bytes):
    """A ROUTER's name for a connection, with the key of whoever is there."""

    user: str
    frame: zmq.Frame
    """A few bytes of libzmq's; it knows the address, which costs as much as receiving and is seldom asked for."""


def _peer(frame: zmq.Frame) -> Peer:
    peer = Peer(frame.bytes)
    peer.user = str(frame.get("User-Id"))
    peer.frame = frame
    return peer


def address_of(frame: zmq.Frame) -> str:
    """Where a frame came from: an IP address, of an ipc peer "pid 123"; "" where that is not known."""
    try:
        address = str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return ""
    ipc_peer = _IPC_PEER.fullmatch(address)
    return f"pid {ipc_peer[1]}" if ipc_peer else address


def receive_from(socket: zmq.Socket[bytes]) -> list[Any] | None:
    """As `receive`, from a socket with keys: the first frame is a `Peer`."""
    try:
        frame = socket.recv(zmq.DONTWAIT, copy=False)
    except zmq.Again:
        return None
    return [_peer(frame), *(receive(socket) or ())] if frame.more else [_peer(frame)]


def receive(socket: zmq.Socket[bytes]) -> list[Any] | None:
    """One message without waiting, or None: two frames as bytes (identity and envelope, or envelope and header), the
    others as `zmq.Frame`, whose memory is libzmq's own."""
    try:
        frame = socket.recv(_DONTWAIT, False)
    except zmq.Again:
        return None
    # A frame knows whether more follow; asking the socket (RCVMORE) costs as much as receiving.
    frames: list[Any] = [frame.bytes]
    if frame.more:
        frame = socket.recv(0, False)
        frames.append(frame.bytes)
        while frame.more:
            frame = socket.recv(0, False)
            frames.append(frame)
    return frames


class Inbox:
    """The messages that wait at a socket, for a loop that was told by a poll that there is at least one.

    To find that there are no more costs as much as to receive several: being refused makes an exception, asking costs
    a fifth of that. So a socket that had one message last time is asked after each, and one that had several is read
    until it refuses.
    """

    def __init__(self, socket: zmq.Socket[bytes], *, keyed: bool = False) -> None:
        self.socket = socket
        self._receive = receive_from if keyed else receive
        self._source: list[tuple[Any, int]] = [(socket, POLLIN)]
        self._busy = False

    def take(self, most: int) -> list[list[Any]]:
        """At most so many messages, as `receive` returns them."""
        receive, socket = self._receive, self.socket
        messages: list[list[Any]] = []
        while len(messages) < most:
            frames = receive(socket)
            if frames is None:
                self._busy = len(messages) > 1
                break
            messages.append(frames)
            if not self._busy:
                if len(messages) == most or not self.waiting():
                    break
                self._busy = True
        return messages

    def waiting(self) -> bool:
        """Whether there is a message."""
        return bool(zmq.zmq_poll(self._source, 0))


def forward(socket: zmq.Socket[bytes], frames: Sequence[Sendable]) -> None:
    """As `send`, with nothing lent: a `zmq.Frame` is passed on, all else is copied."""
    for frame in frames[:-1]:
        send_frame(socket, frame, _DONTWAIT_SNDMORE)
    send_frame(socket, frames[-1], _DONTWAIT)


def send(socket: zmq.Socket[bytes], frames: Sequence[Sendable], *, track: bool = False) -> Sequence[zmq.MessageTracker]:
    """One message without waiting. A `zmq.Frame` is passed on, bytes are copied, and so is a memoryview (of bytes)
    shorter than `LENT`. A longer one is lent: libzmq sends it from its own memory, which must not change meanwhile.
    With `track` a tracker is returned for each that is lent; it is done when that memory is free again.

    Raises zmq.Again where the pipe is full and zmq.ZMQError (EHOSTUNREACH) where a ROUTER does not know the peer.
    """
    trackers: list[zmq.MessageTracker] = []
    if max(map(len, frames)) >= LENT:
        frames = [*frames]
        for at, frame in enumerate(frames):
            if type(frame) is memoryview and len(frame) >= LENT:
                # Each frame by itself: pyzmq's send_multipart tracks the last one only.
                lent = zmq.Frame(frame, track=track, copy=False)
                if lent.tracker is not None:
                    trackers.append(lent.tracker)
                frames[at] = lent
    forward(socket, frames)
    return trackers
