"""The gateway's ports: listening, and ending without a reset of a connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from zmq_offload.common.units import counted
from zmq_offload.errors import FailedPrecondition
from zmq_offload.net import addresses

log = logging.getLogger("gateway")

_BACKLOG = 4096
"""Connections that wait to be accepted; the system may allow fewer."""

_PROBING = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 15),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
)
"""A client that vanishes without a word, such as a phone without power, is noticed after two minutes. Its stream would
stay for ever, since a stream may be silent."""

_HANDSHAKE = 10.0
"""Seconds for a TLS handshake. A connection counts among a port's connections only after it."""

_LAST = 0.5
"""Seconds in which clients read the errors of requests that are given up."""

_LOOK_EVERY = 0.02
"""Seconds between two looks at what a draining gateway still holds."""


class Service(Protocol):
    """What answers on a port."""

    @property
    def connections(self) -> int:
        """The number of open connections."""

    @property
    def held(self) -> int:
        """Bytes of the bodies or messages that are held."""

    def protocol(self) -> asyncio.BaseProtocol:
        """Make the protocol of a new connection."""

    def drain(self) -> None:
        """Finish what runs, and close each connection then.

        Answers say that their connection closes. One without a request closes after a moment of silence, because a
        request may be under way.
        """

    def abort(self) -> None:
        """Close all connections at once."""


class Door(NamedTuple):
    """A port that is wanted: its name, which is that of its option, HOST:PORT, and what answers there."""

    name: str
    address: str
    service: Service
    tls: ssl.SSLContext | None


@dataclass(slots=True)
class Port:
    """A port that listens."""

    door: Door
    socket: socket.socket
    server: asyncio.AbstractServer

    @property
    def address(self) -> str:
        """HOST:PORT, with the number that the system chose for port 0."""
        host, number = self.socket.getsockname()[:2]
        return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


async def listen(doors: Iterable[Door]) -> list[Port]:
    """Listen at all of them. Raises FailedPrecondition for an address that is taken, or of another machine."""
    loop = asyncio.get_running_loop()
    ports = []
    for door in doors:
        bound = _bind(door)
        handshake = _HANDSHAKE if door.tls else None
        server = await loop.create_server(
            door.service.protocol, sock=bound, ssl=door.tls, ssl_handshake_timeout=handshake, backlog=_BACKLOG
        )
        ports.append(Port(door, bound, server))
    return ports


def _bind(door: Door) -> socket.socket:
    """A socket that is bound to a door's HOST:PORT. `[::]` accepts IPv4, too."""
    host, _, port = addresses.to_bind(f"tcp://{door.address}").removeprefix("tcp://").rpartition(":")
    host = "0.0.0.0" if host == "*" else host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for level, name, value in _PROBING:  # accepted connections inherit it
                if hasattr(socket, name):
                    bound.setsockopt(level, getattr(socket, name), value)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            bound.setblocking(False)
            bound.bind(where)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise FailedPrecondition(
            f"cannot listen at {door.address}: {error.strerror}; choose another address with --{door.name}, or none"
        ) from None
    return bound


async def drain(ports: Sequence[Port], grace: float, give_up: Callable[[], None]) -> None:
    """Take no more connections, and finish what runs.

    After `grace` seconds, `give_up` answers what is left with an error. Connections that are not at their end then are
    closed.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + grace
    for port in ports:
        service = port.door.service
        waiting = _accept_all(port.socket)  # closing the socket would reset them
        port.server.close()
        service.drain()
        for accepted in waiting:
            await loop.connect_accepted_socket(service.protocol, accepted, ssl=port.door.tls)
    if left := await _left(ports, end):
        log.warning("closing %s that did not end within %.1f s", counted(left, "connection"), grace)
        give_up()
        await _left(ports, loop.time() + _LAST)
    for port in ports:
        port.door.service.abort()


async def _left(ports: Sequence[Port], end: float) -> int:
    """Wait until all connections are closed, or the time is `end`; how many are left."""
    while (left := sum(port.door.service.connections for port in ports)) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(_LOOK_EVERY)
    return left


def _accept_all(listening: socket.socket) -> list[socket.socket]:
    """The connections that wait to be accepted."""
    accepted = []
    with contextlib.suppress(OSError):  # BlockingIOError: there are no more
        while True:
            accepted.append(listening.accept()[0])
    return accepted
