"""How peers are connected: the transport, and whether they share memory with this broker. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from zmq_offload.net.sharedmemory.offers import Offered
    from zmq_offload.net.sharedmemory.segment import Use

MOST_LISTED = 100
"""Lines of clients in a status."""


class Way(NamedTuple):
    """How one peer, or several that are alike, are connected."""

    transport: str
    """tcp or ipc."""
    address: str
    offer: Offered | None
    """The memory that the peer shares."""
    why: str
    """Why it shares none."""


class Ways(Protocol):
    """What the ports know of the connections."""

    def of_worker(self, peer: bytes) -> Way | None:
        """How a worker is connected."""

    def of_clients(self) -> Counter[Way] | None:
        """How all clients are connected, and how many of them alike. None if that is not known."""

    def use_of(self, offer: Offered) -> Use | None:
        """How a peer's memory is used. None if it has ended."""

    def own_use(self) -> Use | None:
        """How this process's own memory is used. None if it shares none."""


def way_of_worker(ways: Ways, peer: bytes) -> dict[str, object]:
    """What the status says of the connection of a worker."""
    way = ways.of_worker(peer)
    return {} if way is None else {"transport": way.transport, "shared_memory": _shared(ways, way)}


def others(ways: Ways) -> dict[str, object]:
    """What the status says of the connections of clients, and of the memory of this process."""
    found: dict[str, object] = {}
    clients = ways.of_clients()
    if clients is not None:
        listed = sorted(clients, key=lambda way: (way.offer is None, -clients[way], way.address, way.why))
        found["clients"] = {
            "connected": sum(clients.values()),
            "sharing": sum(count for way, count in clients.items() if way.offer is not None),
            "listed": [
                {
                    "address": way.address,
                    "process": 0 if way.offer is None else way.offer.pid,
                    "connections": clients[way],
                    "transport": way.transport,
                    "shared_memory": _shared(ways, way),
                }
                for way in listed[:MOST_LISTED]
            ],
        }
    own = ways.own_use()
    return found if own is None else found | {"shared_memory": own._asdict()}


def _shared(ways: Ways, way: Way) -> dict[str, object]:
    """Whether a peer shares memory: how it is used, or why it shares none."""
    if way.offer is None:
        return {"shares": False, "why": way.why}
    use = ways.use_of(way.offer)
    return {"shares": True, **({} if use is None else use._asdict())}
