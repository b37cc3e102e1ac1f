"""How peers are connected, as the status says it."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker import ways
from broker.events import FromClient, FromWorker
from broker.ports.peers import KeyedWays
from broker.status import describe_status
from broker.ways import Way, others, way_of_worker
from tests.broker.test_core import Bench as CoreBench
from tests.broker.test_ports import BEAT, PING, lent, needs_sharing
from tests.broker.test_ports import Bench as PortsBench
from zmq_offload.net.sharedmemory.offers import Offered
from zmq_offload.net.sharedmemory.segment import Use
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.net.stream import Stream
from zmq_offload.net.zmtp import Peer
from zmq_offload.protocol import limits

OFFER = Offered(b"h" * 16, 4711, 5, b"c" * 16)
GONE = OFFER._replace(pid=4712)
USE = Use(1000, 300, 20, 4)
NUMBERS = {"arena_bytes": 1000, "taken_bytes": 300, "lent_bytes": 20, "mapped_bytes": 4}
NEAR = Way("tcp", "127.0.0.1", OFFER, "")
FAR = Way("tcp", "10.0.0.7", None, "another host")


class Known:
    """What ports know."""

    def __init__(self, clients: dict[Way, int] | None, own: Use | None = None) -> None:
        self._clients, self._own = clients, own

    def of_worker(self, peer: bytes) -> Way | None:
        return {b"W1": NEAR, b"W2": FAR}.get(peer)

    def of_clients(self) -> Counter[Way] | None:
        return None if self._clients is None else Counter(self._clients)

    def use_of(self, offer: Offered) -> Use | None:
        return USE if offer == OFFER else None

    def own_use(self) -> Use | None:
        return self._own


def test_workers_share_memory_or_the_status_says_why_not() -> None:
    known = Known(None)
    shares = {"transport": "tcp", "shared_memory": {"shares": True, **NUMBERS}}
    assert way_of_worker(known, b"W1") == shares
    assert way_of_worker(known, b"W2")["shared_memory"] == {"shares": False, "why": "another host"}
    assert way_of_worker(known, b"gone") == {}
    bench = CoreBench()
    bench.announce()
    status: Any = describe_status(bench.core.ledger, bench.now, lambda _: True, known)
    assert "clients" not in status and "shared_memory" not in status
    assert status["workers"][0]["name"] == "W1" and shares.items() <= status["workers"][0].items()


def test_clients_that_are_alike_are_counted_and_those_that_share_come_first() -> None:
    found: Any = others(Known({FAR: 5, NEAR: 2, NEAR._replace(offer=GONE): 1}, USE))
    assert found["shared_memory"] == NUMBERS
    clients = found["clients"]
    assert (clients["connected"], clients["sharing"]) == (8, 3)
    assert [(one["process"], one["connections"], one["shared_memory"]) for one in clients["listed"]] == [
        (4711, 2, {"shares": True, **NUMBERS}),
        (4712, 1, {"shares": True}),
        (0, 5, {"shares": False, "why": "another host"}),
    ]


def test_a_status_lists_a_bounded_number_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "MOST_LISTED", 3)
    clients: Any = others(Known({FAR._replace(address=f"10.0.0.{number}"): 1 for number in range(9)}))["clients"]
    assert clients["connected"] == 9 and len(clients["listed"]) == 3


def test_with_keys_nothing_is_shared() -> None:
    known = KeyedWays("ipc:///run/broker")
    assert way_of_worker(known, b"any") == {"transport": "ipc", "shared_memory": {"shares": False, "why": "keys"}}
    assert others(known) == {}


# --- the ports ------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened() -> Iterator[Callable[..., PortsBench]]:
    benches: list[PortsBench] = []

    def make(sharing: Sharing | None, **options: object) -> PortsBench:
        benches.append(PortsBench(sharing, **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@needs_sharing
def test_ports_know_who_shares_memory_and_how_much(opened: Callable[..., PortsBench]) -> None:
    bench = opened(Sharing(4096))
    own, theirs = Sharing(1 << 20), Sharing(2 << 20)
    client, worker = bench.peer(bench.ports.frontend, own), bench.peer(bench.ports.backend, theirs)
    bench.send(worker, BEAT)
    peer = bench.first(FromWorker).peer  # type: ignore[union-attr]
    known = bench.ports.ways
    way = known.of_worker(peer)
    assert way is not None and way.offer is not None
    use = known.use_of(way.offer)
    assert use is not None and (use.arena_bytes, use.lent_bytes, use.mapped_bytes) == (2 << 20, 0, 4096)
    memory, _ = lent(bench, client, own)
    ((sharer, count),) = known.of_clients().items()
    assert count == 1 and sharer.offer is not None
    use = known.use_of(sharer.offer)
    assert use is not None and use.lent_bytes == len(memory) <= use.taken_bytes < 1 << 20
    del memory
    own.tick()
    use = known.use_of(sharer.offer)
    assert use is not None and use.lent_bytes == 0
    assert known.of_worker(b"nobody") is None
    worker.close()
    bench.until(lambda: known.of_worker(peer) is None)


@needs_sharing
def test_ports_know_why_a_peer_shares_no_memory(opened: Callable[..., PortsBench], tmp_path: Path) -> None:
    bench = opened(Sharing(4096))
    bench.peer(bench.ports.frontend)
    waiting = bench.connect(bench.ports.frontend)  # it does not greet
    bench.until(bench.ports.ways.of_clients)
    assert [way.why for way in bench.ports.ways.of_clients()] == ["switched off"]
    waiting.close()
    alone = opened(None, frontend=f"ipc://{tmp_path}/front")
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(f"{tmp_path}/front")
        stream = Stream(connected, Peer(1 << 20, limits.FRAMES, 1.0))
        alone.until(lambda: (stream.flush(), stream.receive(), stream.peer.is_ready)[-1])
        alone.send(stream, PING)
        alone.first(FromClient)
        ((way, _),) = alone.ports.ways.of_clients().items()
    assert (way.transport, way.why) == ("ipc", "not possible here")
    assert alone.ports.ways.own_use() is None and alone.ports.ways.use_of(OFFER) is None


@needs_sharing
def test_a_peer_that_has_not_proved_yet_is_asked_again(opened: Callable[..., PortsBench]) -> None:
    bench = opened(Sharing(4096))
    own = Sharing(1 << 20)

    class Slow:
        """Offers memory and proves nothing."""

        properties = own.properties

        def proof(self, told: object, kind: bytes) -> None:
            return None

    stream = Stream(bench.connect(bench.ports.frontend), Peer(1 << 20, limits.FRAMES, 1.0, sharer=Slow()))  # type: ignore[arg-type]
    bench.until(lambda: (stream.flush(), stream.receive(), stream.peer.is_ready)[-1])
    bench.until(bench.ports.ways.of_clients)
    ((way, _),) = bench.ports.ways.of_clients().items()
    assert way.why == "cannot be opened"
    (connection,) = bench.ports._connections.values()
    assert connection.way is None
    stream.close()
