"""What the ports know of their peers' connections, for the status. It is found out when somebody asks."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping

from broker.ports.connection import Connection
from broker.ways import Way
from zmq_offload.net.sharedmemory.offers import KEYS, Offered, offered, why_not
from zmq_offload.net.sharedmemory.segment import Use
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.net.shortcut import is_own_user


class StreamWays:
    """Implements `broker.ways.Ways` for connections on plain sockets, which are given by the ids of their peers."""

    def __init__(self, connections: Mapping[bytes, Connection], sharing: Sharing | None) -> None:
        self._connections = connections
        self._sharing = sharing

    def of_worker(self, peer: bytes) -> Way | None:
        connection = self._connections.get(peer)
        return None if connection is None else self._way(connection)

    def of_clients(self) -> Counter[Way]:
        return Counter(
            each.way or self._way(each)
            for each in self._connections.values()
            if each.side.of_clients and not each.is_new
        )

    def use_of(self, offer: Offered) -> Use | None:
        return None if self._sharing is None else self._sharing.use_of(offer)

    def own_use(self) -> Use | None:
        return None if self._sharing is None else self._sharing.arena.use()

    def _way(self, connection: Connection) -> Way:
        peer = connection.peer
        transport = "ipc" if connection.socket.family == socket.AF_UNIX else "tcp"
        if peer.shares:
            connection.way = Way(transport, connection.address, offered(peer.properties), "")
            return connection.way
        own = None if self._sharing is None else self._sharing.offer
        is_near, same_user = _nearness(connection)
        why = why_not(own, peer.properties, is_near=is_near, same_user=same_user)
        found = Way(transport, connection.address, None, why)
        if own is None or offered(peer.properties) is None:  # else it may still prove that it shares
            connection.way = found
        return found


def _nearness(connection: Connection) -> tuple[bool, bool | None]:
    """Whether the other end has an address of this machine, and whether it is of this user, as far as that is known."""
    connected = connection.socket
    if connected.family == socket.AF_UNIX:
        return True, is_own_user(connected)
    return connected.getsockname()[0] == connection.address, None


class KeyedWays:
    """Implements `broker.ways.Ways` for connections of libzmq, which tells nothing of them. `backend` is where workers
    connect."""

    def __init__(self, backend: str) -> None:
        self._way = Way(backend.partition("://")[0], "", None, KEYS)

    def of_worker(self, peer: bytes) -> Way:
        return self._way

    def of_clients(self) -> None:
        return None

    def use_of(self, offer: Offered) -> None:
        return None

    def own_use(self) -> None:
        return None
