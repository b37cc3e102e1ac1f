"""From TCP to a Unix socket: who takes it, who does not, and what happens when it leads to nowhere."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.ports import connection as connections
from broker.ports.listening import Listener
from tests.broker.test_ports import BEAT, Bench, needs_sharing
from zmq_offload.errors import FailedPrecondition
from zmq_offload.net import line as lines
from zmq_offload.net import shortcut as shortcuts
from zmq_offload.net.line import Change, Line
from zmq_offload.net.sharedmemory.offers import PROPERTY as OFFER
from zmq_offload.net.sharedmemory.offers import Offered
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.net.shortcut import PROPERTY, Inviting, Shortcut, new_name, shortcut_of
from zmq_offload.net.zmtp import Peer, Scratch

OFFERED = Offered(b"h" * 16, 7, 5, b"c" * 16)
NAME = new_name()
OWN = ("127.0.0.1", 4000)


def peer(told: str, *, proved: bool = True, offer: Offered | None = OFFERED) -> Peer:
    """A peer after its handshake."""
    found = Peer(1 << 20, 3, 1.0)
    found.proved = proved
    found.properties = {PROPERTY.lower(): told.encode()}
    if offer is not None:
        found.properties[OFFER.lower()] = offer.packed()
    return found


def test_the_shortcut_is_taken_if_nothing_is_in_between_and_the_memory_was_read() -> None:
    told = f"127.0.0.1:4000 {NAME}"
    found = shortcut_of(OWN, peer(told))
    assert found == Shortcut(f"ipc://{NAME}", OFFERED.arena)
    assert shortcut_of(("::ffff:127.0.0.1", 4000, 0, 0), peer(told)) == found
    assert shortcut_of(("127.0.0.1", 4001), peer(told)) is None, "a proxy"
    assert shortcut_of("", peer(f" {NAME}")) is None, "it is a Unix socket already"
    assert shortcut_of(OWN, peer(told, proved=False)) is None
    assert shortcut_of(OWN, peer(told, offer=None)) is None
    for wrong in ("", NAME, f"127.0.0.1:4000 /tmp/{NAME}", f"127.0.0.1:4000 {NAME}0", f"127.0.0.1:4000 {NAME[:-1]}é"):
        assert shortcut_of(OWN, peer(wrong)) is None
    assert found.leads_to(peer(""))
    assert not found.leads_to(peer("", offer=OFFERED._replace(cookie=b"o" * 16)))
    assert not found.leads_to(peer("", proved=False)) and not found.leads_to(peer("", offer=None))


class Caller:
    """A `Line` to a bench's frontend or backend, and what happened to it."""

    def __init__(self, bench: Bench, endpoint: str, sharing: Sharing | None) -> None:
        self._bench = bench
        self.events: list[Any] = []
        self.line = Line(
            0,
            endpoint,
            lambda event: self.events.append(event[1]),
            Scratch(),
            heartbeat=1.0,
            max_frame_bytes=1 << 20,
            most_messages=9,
            sharing=sharing,
        )

    def turn(self) -> None:
        now = time.monotonic()
        if self.line.due <= now:
            self.line.tick(now)
        elif self.line.descriptor is not None:
            self.line.ready(now)

    def until(self, holds: Callable[[], object]) -> None:
        self._bench.until(lambda: (self.turn(), holds())[-1])

    @property
    def family(self) -> socket.AddressFamily:
        assert self.line.stream is not None
        return socket.AddressFamily(self.line.stream.socket.family)

    def connect(self) -> socket.AddressFamily:
        """Connect, and say by what."""
        self.until(lambda: self.line.is_ready)
        return self.family


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(Sharing(4096))
    yield bench
    bench.close()


@pytest.fixture
def calling(bench: Bench) -> Iterator[Callable[..., Caller]]:
    callers: list[Caller] = []

    def make(endpoint: str = "", sharing: Sharing | None = None) -> Caller:
        callers.append(Caller(bench, endpoint or bench.ports.frontend, sharing))
        return callers[-1]

    yield make
    for caller in callers:
        caller.line.close()


@needs_sharing
def test_a_peer_that_shares_memory_comes_to_the_unix_socket(bench: Bench, calling: Callable[..., Caller]) -> None:
    worker = calling(bench.ports.backend, Sharing(1 << 20))
    assert worker.connect() is socket.AF_UNIX
    assert worker.events.count(Change.CONNECTED) == 1
    worker.until(lambda: worker.line.shares)
    worker.line.put(time.monotonic(), [BEAT])
    worker.line.flush(time.monotonic())
    bench.events.clear()
    bench.until(lambda: bench.events)
    (way,) = (bench.ports.ways.of_worker(bench.events[0].peer),)  # type: ignore[union-attr]
    assert way is not None and (way.transport, way.why) == ("ipc", "")
    assert calling(sharing=None).connect() is socket.AF_INET


@needs_sharing
@pytest.mark.parametrize("fault", ["gone", "other memory", "other user"])
def test_a_shortcut_to_nowhere_leads_back_to_the_port(
    fault: str, bench: Bench, calling: Callable[..., Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        if fault == "gone":
            patched.setattr(
                lines,
                "shortcut_of",
                lambda own, peer: (found := shortcut_of(own, peer)) and found._replace(endpoint=f"ipc://{new_name()}"),
            )
        elif fault == "other memory":
            patched.setattr(Shortcut, "leads_to", lambda self, peer: False)
        else:
            patched.setattr(lines, "is_own_user", lambda connected: False)
        caller = calling(sharing=Sharing(1 << 20))
        assert caller.connect() is socket.AF_INET
        assert caller.events.count(Change.CONNECTED) == 1 and caller.line.refusal is None
        caller.until(lambda: caller.line.shares)
    caller.line.reconnect()
    assert caller.connect() is socket.AF_UNIX, "it is tried again with the next connection"


@needs_sharing
def test_ports_do_not_accept_other_users_there(monkeypatch: pytest.MonkeyPatch) -> None:
    name = new_name()
    listener = Listener(f"ipc://{name}", own_user=True)
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.connect("\0" + name[1:])
        listener.accept()[0].close()
        monkeypatch.setattr("os.geteuid", lambda: 12345)
        other.connect("\0" + name[1:])
        with pytest.raises(PermissionError):
            listener.accept()
        assert other.recv(1) == b""
    listener.close()


@needs_sharing
def test_a_system_without_such_sockets_stays_at_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    real = connections.Listener

    def refuse(endpoint: str, *, own_user: bool = False) -> Listener:
        if own_user:
            raise FailedPrecondition("no")
        return real(endpoint)

    monkeypatch.setattr(connections, "Listener", refuse)
    bench = Bench(Sharing(4096))
    caller = Caller(bench, bench.ports.frontend, Sharing(1 << 20))
    assert caller.connect() is socket.AF_INET
    caller.line.close()
    bench.close()


def test_nobody_on_another_host_is_told() -> None:
    class Far:
        def getsockname(self) -> tuple[str, int]:
            return "10.0.0.1", 5555

        def getpeername(self) -> tuple[str, int]:
            return "10.0.0.2", 4000

    class Sharer:
        properties = {b"a": b"b"}  # noqa: RUF012

    assert Inviting(Sharer(), Far(), NAME).properties == {b"a": b"b"}  # type: ignore[arg-type]
    assert shortcuts.PROPERTY not in Inviting(Sharer(), Far(), NAME).properties  # type: ignore[arg-type]
