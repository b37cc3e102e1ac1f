"""From TCP to a Unix socket, where both ends are processes of one user on one host: it costs the kernel less.

An end that accepts connections at a TCP port listens at a Unix socket, too, whose name nobody can guess and which
leaves no file. It tells that name in its READY, with the address of the other end as it sees it. The other end takes
the shortcut if that is its own address, so that nothing is in between that was put there on purpose, and if it can read
the memory that the first one offers (see `zmq_offload.net.sharedmemory`). At the Unix socket it finds the same memory
offered, by a process of its own user, or it goes back to the port.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from zmq_offload.net.sharedmemory.offers import offered
from zmq_offload.net.zmtp import Peer, Sharer

PROPERTY = b"X-Zmq-Offload-Socket"
"""The property of READY that tells of the shortcut: an address, a space and a name."""

_NAME = re.compile(r"@zmq-offload-[0-9a-f]{32}")
_MOST_BYTES = 256
_MAPPED = "::ffff:"
"""How a socket for IPv6 writes an address of IPv4."""

_CREDENTIALS = struct.Struct("3i")
"""What SO_PEERCRED tells: the other end's process, user and group."""


def new_name() -> str:
    """A name for a Unix socket that nobody can guess."""
    return f"@zmq-offload-{os.urandom(16).hex()}"


def credentials_of(connected: socket.socket) -> tuple[int, int]:
    """Process and user of the other end of a Unix socket."""
    process, user, _ = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return process, user


def is_own_user(connected: socket.socket) -> bool:
    """Whether the other end of a Unix socket is of this process's user."""
    return credentials_of(connected)[1] == os.geteuid()


class Shortcut(NamedTuple):
    """Where to connect, and whose memory is offered there."""

    endpoint: str
    arena: tuple[int, int, bytes]

    def leads_to(self, peer: Peer) -> bool:
        """Whether the other end there, after the handshake, is the one that told of it."""
        offer = offered(peer.properties)
        return peer.proved and offer is not None and offer.arena == self.arena


def shortcut_of(own: Any, peer: Peer) -> Shortcut | None:
    """The shortcut for a connection after its handshake, whose end here is at `own` (`getsockname`). None if there is
    none, or it must not be taken."""
    told, offer = peer.properties.get(PROPERTY.lower()), offered(peer.properties)
    if told is None or offer is None or not peer.proved or not isinstance(own, tuple):  # else it is a Unix socket
        return None
    address, _, name = told[:_MOST_BYTES].decode("ascii", "replace").rpartition(" ")
    if address != _address(own) or not _NAME.fullmatch(name):
        return None
    return Shortcut(f"ipc://{name}", offer.arena)


def _address(place: Any) -> str:
    return f"{place[0].removeprefix(_MAPPED)}:{place[1]}"


class Inviting:
    """A `zmq_offload.net.zmtp.Sharer` of one accepted connection, which tells of the shortcut `name`."""

    __slots__ = ("_accepted", "_name", "_sharer")

    def __init__(self, sharer: Sharer, accepted: socket.socket, name: str) -> None:
        self._sharer, self._accepted, self._name = sharer, accepted, name

    @property
    def properties(self) -> Mapping[bytes, bytes]:
        found = self._sharer.properties
        own, other = self._accepted.getsockname(), self._accepted.getpeername()
        if own[0] != other[0]:  # it is on another host
            return found
        return {**found, PROPERTY: f"{_address(other)} {self._name}".encode()}

    def proof(self, told: Mapping[bytes, bytes], kind: bytes) -> bytes | None:
        return self._sharer.proof(told, kind)

    def is_proof(self, given: bytes, kind: bytes) -> bool:
        return self._sharer.is_proof(given, kind)
