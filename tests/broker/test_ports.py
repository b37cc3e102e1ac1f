"""The broker's ports on plain sockets: what peers do, and which events come of it."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from broker.config import Config
from broker.events import Disconnected, Event, FromClient, FromWorker, Malformed, Stop, ToClient, ToWorker, Undelivered
from broker.liveness import LivenessPolicy
from broker.ports import listening, streams
from broker.ports.streams import StreamPorts
from zmq_offload.common.notes import Notes
from zmq_offload.errors import FailedPrecondition
from zmq_offload.net import transport
from zmq_offload.net.sharedmemory import readers, segment
from zmq_offload.net.sharedmemory.references import Reference, SharedFrame, take_out
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.net.stream import Stream
from zmq_offload.net.zmtp import HELLO, Peer
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire

SESSION = bytes(16)
PING = wire.encode(wire.Ping(SESSION, [1]))
BEAT = wire.encode(wire.Heartbeat())


class Bench:
    """Ports of a broker, and the time that they see: real time, and what a test adds to it."""

    def __init__(self, sharing: Sharing | None = None, **options: object) -> None:
        self.ahead = 0.0
        self.wake = transport.Wake()
        self.notes = Notes()
        given = {"frontend": "tcp://127.0.0.1:0", "backend": "tcp://127.0.0.1:0"}
        config = Config(**{**given, **options}, policy=LivenessPolicy(heartbeat=1.0))  # type: ignore[arg-type]
        try:
            self.ports = StreamPorts(config, self.wake, self.notes, self.now, sharing)
        except BaseException:
            self.wake.close()
            raise
        self.events: list[Event] = []
        self._opened: list[Stream | socket.socket] = []

    def now(self) -> float:
        return time.monotonic() + self.ahead

    def connect(self, endpoint: str) -> socket.socket:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        connected = socket.create_connection((host, int(port)))
        self._opened.append(connected)
        return connected

    def peer(self, endpoint: str, sharing: Sharing | None = None) -> Stream:
        """A peer after its handshake, which shares memory with the broker if both can."""
        stream = Stream(self.connect(endpoint), Peer(1 << 20, limits.FRAMES, 1.0, sharer=sharing))
        self._opened.append(stream)
        self.until(lambda: (stream.flush(), stream.receive(), stream.peer.is_ready)[-1])
        if sharing is not None:
            self.until(lambda: (stream.receive(), stream.peer.shares)[-1])
        return stream

    def send(self, stream: Stream, *frames: bytes) -> None:
        assert stream.put(frames)
        stream.flush()

    def turn(self, seconds: float = 0.0) -> list[Event]:
        events = list(self.ports.wait(seconds))
        self.events += events
        return events

    def until(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < end
            self.turn(0.01)

    def first(self, kind: type[Event]) -> Event:
        """The next event of a kind."""
        self.until(lambda: any(type(event) is kind for event in self.events))
        at = next(at for at, event in enumerate(self.events) if type(event) is kind)
        return self.events.pop(at)

    def log(self) -> list[str]:
        return [text for _, text in self.notes.take()]

    def close(self) -> None:
        for opened in self._opened:
            opened.close()
        self.ports.close()
        self.wake.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_messages_come_with_their_peers_and_go_back_to_them(bench: Bench) -> None:
    client, worker = bench.peer(bench.ports.frontend), bench.peer(bench.ports.backend)
    bench.send(client, PING, b"payload", b"x" * 200_000)
    bench.send(worker, BEAT)
    asked, beat = bench.first(FromClient), bench.first(FromWorker)
    assert isinstance(asked, FromClient) and isinstance(beat, FromWorker)
    assert [bytes(frame) for frame in asked.payload] == [b"payload", b"x" * 200_000]
    assert beat.address == "127.0.0.1" and beat.peer != asked.peer
    big = b"y" * 500_000
    bench.ports.send([ToWorker(beat.peer, wire.Probe()), ToClient(asked.peer, wire.Answer(SESSION, 1), [b"a", big])])
    got: list[list[bytes]] = []
    bench.until(lambda: got.extend([bytes(f) for f in m] for m in client.receive()) or got)
    assert got == [[wire.encode(wire.Answer(SESSION, 1)), b"a", big]]
    bench.until(worker.receive)


def test_a_worker_that_ends_is_named_after_its_last_message(bench: Bench) -> None:
    client, worker = bench.peer(bench.ports.frontend), bench.peer(bench.ports.backend)
    for _ in range(50):
        bench.send(worker, BEAT)
    worker.close()
    client.close()
    ended = bench.first(Disconnected)
    beats = [event for event in bench.events if isinstance(event, FromWorker)]
    assert len(beats) == 50 and {beat.peer for beat in beats} == {ended.peer}  # type: ignore[union-attr]
    assert len(bench.events) == 50, "a client that ends is no news"
    lost = ToWorker(beats[0].peer, wire.Probe())
    bench.ports.send([lost])
    assert bench.first(Undelivered) == Undelivered(lost, False)


def test_what_a_peer_sent_comes_before_the_news_that_it_does_not_read(bench: Bench) -> None:
    worker = bench.peer(bench.ports.backend)
    bench.send(worker, BEAT)
    beat = bench.first(FromWorker)
    assert isinstance(beat, FromWorker)
    probe = ToWorker(beat.peer, wire.Probe(), [bytes(100_000)])
    bench.until(lambda: bench.ports.send([probe] * 300) or any(isinstance(e, Undelivered) for e in bench.events))
    bench.events.clear()
    bench.turn()
    bench.send(worker, BEAT)
    bench.ports.send([probe])
    time_out = time.monotonic() + 5
    while not (events := bench.turn(0.1)):
        assert time.monotonic() < time_out
    assert [type(event) for event in events] == [FromWorker, Undelivered]
    assert events[1] == Undelivered(probe, True)


def test_all_unread_messages_go_out_at_the_end_if_they_are_read(bench: Bench) -> None:
    client = bench.peer(bench.ports.frontend)
    bench.send(client, PING)
    asked = bench.first(FromClient)
    bench.ports.send([ToClient(asked.peer, wire.Answer(SESSION, 1), [b"last"])])  # type: ignore[union-attr]
    bench.ports.close()
    assert client.receive()[0][1] == b"last"


def test_the_end_waits_only_for_a_while_for_a_peer_that_does_not_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_LINGER", 0.05)
    client = bench.peer(bench.ports.frontend)
    bench.send(client, PING)
    asked = bench.first(FromClient)
    many = 100
    answer = ToClient(asked.peer, wire.Answer(SESSION, 1), [bytes(1_000_000)])  # type: ignore[union-attr]
    bench.ports.send([answer] * many)
    bench.ports.close()
    received, in_time = 0, True
    with suppress(OSError):  # the end
        while in_time:
            in_time = bool(select.select([client], [], [], 10)[0])
            received += len(client.receive())
    assert in_time and received < many


def test_a_flood_of_one_peer_leaves_turns_to_others(bench: Bench) -> None:
    flooder, client = bench.peer(bench.ports.frontend), bench.peer(bench.ports.frontend)
    for _ in range(1000):
        flooder.put([PING])
        flooder.flush()
    bench.send(client, PING)
    bench.until(lambda: len({event.peer for event in bench.events if isinstance(event, FromClient)}) == 2)
    assert len(bench.events) <= 100
    bench.until(lambda: len(bench.events) == 1001)


def test_a_peer_with_a_name_and_one_with_too_many_frames_are_answered(bench: Bench) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as named:
        named.linger = 0
        named.setsockopt(zmq.ROUTING_ID, b"me")
        named.connect(bench.ports.frontend)
        named.send(PING)
        fault = bench.first(Malformed)
    assert isinstance(fault, Malformed) and "a routing id was set" in fault.error.message
    client = bench.peer(bench.ports.frontend)
    for frames, says in (
        ([PING] + [b""] * limits.FRAMES, f"at most {limits.FRAMES} frames"),
        ([b"x" * 100_000], "an envelope has 2 to 8192 bytes, not 100000"),
        ([b"x" * 400_000], "an envelope has 2 to 8192 bytes, not 400000"),
    ):
        bench.send(client, *frames)
        bench.until(client.flush)
        fault = bench.first(Malformed)
        assert isinstance(fault, Malformed) and says in fault.error.message and fault.address == "127.0.0.1"


def test_a_handshake_that_takes_too_long_ends(bench: Bench) -> None:
    slow, gone = bench.connect(bench.ports.frontend), bench.connect(bench.ports.backend)
    slow.sendall(HELLO)
    ready = bench.peer(bench.ports.frontend)
    gone.close()
    bench.ahead = transport.HANDSHAKE + 0.1
    bench.until(lambda: any("its handshake took too long" in line for line in bench.log()))
    slow.settimeout(5)
    while slow.recv(100):
        pass
    bench.send(ready, PING)
    bench.first(FromClient)


def test_a_silent_worker_is_asked_and_then_gone(bench: Bench) -> None:
    worker = bench.peer(bench.ports.backend)
    bench.send(worker, BEAT)
    beat = bench.first(FromWorker)
    for _ in range(4):
        bench.ahead += 1.0
        bench.turn()
    ended = bench.first(Disconnected)
    assert ended == Disconnected(beat.peer)  # type: ignore[union-attr]
    assert "does not answer heartbeats" in bench.log()[0]


def test_a_worker_that_answers_heartbeats_stays(bench: Bench) -> None:
    worker = bench.peer(bench.ports.backend)
    for _ in range(12):
        bench.ahead += 1.0
        bench.turn()
        with suppress(BlockingIOError):
            worker.receive()
        bench.turn(0.01)
    assert not bench.events


@pytest.mark.parametrize("chance", [random.Random(n) for n in range(3)])
def test_openings_of_strangers_end_and_honest_peers_are_served(bench: Bench, chance: random.Random) -> None:
    _openings(bench, chance, 60)


@pytest.mark.chaos
def test_ten_thousand_openings_of_strangers(bench: Bench) -> None:
    _openings(bench, random.Random(1), 10_000)


def _openings(bench: Bench, chance: random.Random, many: int) -> None:
    honest = bench.peer(bench.ports.frontend)
    greeting = HELLO + b"\x01NULL" + bytes(48)
    ready = b"\x04\x26\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
    whole = greeting + ready + b"\x01\x02ab\x00\x01c"
    for number in range(many):
        stranger = bench.connect(chance.choice((bench.ports.frontend, bench.ports.backend)))
        kind = chance.randrange(5)
        data = (
            chance.randbytes(chance.randrange(300)),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            whole[: chance.randrange(len(whole))],
            bytes(b ^ (chance.random() < 0.03) * chance.randrange(256) for b in whole),
            greeting + ready + b"\x02" + chance.randbytes(8) + chance.randbytes(100),
        )[kind]
        with suppress(OSError):
            stranger.sendall(data)
        bench.turn()
        if chance.random() < 0.8:
            stranger.close()
        if number % 20 == 0:
            bench.events.clear()
            bench.send(honest, PING)
            bench.first(FromClient)
    bench.ahead = transport.HANDSHAKE + 1
    bench.until(lambda: (bench.turn(), bench.ports.due > bench.now())[-1])
    bench.send(honest, PING)
    bench.first(FromClient)


def test_without_files_a_port_waits_and_says_so_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: listening.Listener) -> tuple[socket.socket, str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(listening.Listener, "accept", full)
        waiting = bench.connect(bench.ports.frontend)
        for _ in range(5):
            bench.turn(0.05)
            assert bench.turn(0.0) == [] and bench.ports.due <= bench.now() + 0.5
            bench.ahead += 0.5
    assert bench.log() == ["a client cannot connect: Too many open files; it waits until another connection ends"]
    bench.ahead += 1.0
    waiting.settimeout(0.01)
    stream = Stream(waiting, Peer(1 << 20, 4, 1.0))
    bench.until(lambda: (stream.flush(), stream.receive(), stream.peer.is_ready)[-1])


def test_a_wake_is_a_stop(bench: Bench) -> None:
    bench.wake.set()
    assert bench.turn(5.0) == [Stop(Config.grace)] and bench.turn() == []


def test_workers_are_read_even_if_many_clients_send(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_TURN", 4)
    worker = bench.peer(bench.ports.backend)
    clients = [bench.peer(bench.ports.frontend) for _ in range(12)]
    for client in clients:
        bench.send(client, PING)
    bench.turn(1.0)
    for client in clients:
        bench.send(client, PING)
    bench.send(worker, BEAT)
    bench.turn(1.0)
    assert any(isinstance(event, FromWorker) for event in bench.events)


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ("tcp://127.0.0.1:0", r"tcp://127.0.0.1:"),
        ("tcp://127.0.0.1:*", r"tcp://127.0.0.1:"),
        ("tcp://*:0", "tcp://0.0.0.0:"),
        ("tcp://localhost:0", "tcp://127.0.0.1:"),
        ("tcp://lo:0", "tcp://127.0.0.1:"),
        ("tcp://[::1]:0", "tcp://[::1]:"),
        ("tcp://[::]:0", "tcp://[::]:"),
    ],
)
def test_endpoints_are_those_that_libzmq_knows(given: str, bound: str) -> None:
    try:
        listener = listening.Listener(given)
    except FailedPrecondition:
        if "[" in given and not socket.has_dualstack_ipv6():
            pytest.skip("no IPv6 here")
        raise
    assert listener.endpoint.startswith(bound) and not listener.endpoint.endswith(":0")
    port = int(listener.endpoint.rpartition(":")[2])
    with socket.create_connection(("::1" if bound == "tcp://[::1]:" else "127.0.0.1", port)):
        accepted, address = listener.accept()
        accepted.close()
    assert address in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    listener.close()


def test_an_ipc_peer_is_known_by_its_process(tmp_path: Path) -> None:
    for endpoint in (f"ipc://{tmp_path}/one", "ipc://@zmq-offload-test-ports", "ipc://*"):
        listener = listening.Listener(endpoint)
        path = listener.endpoint.removeprefix("ipc://")
        with socket.socket(socket.AF_UNIX) as connecting:
            connecting.connect("\0" + path[1:] if path.startswith("@") else path)
            accepted, address = listener.accept()
            accepted.close()
        assert address == f"pid {os.getpid()}"
        listener.close()
        assert not Path(path).exists() and (endpoint != "ipc://*" or not Path(path).parent.exists())


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("tcp://192.0.2.1:0", "Cannot assign requested address"),
        ("tcp://no-such-host.invalid:0", "No such device"),
        ("ipc:///no/such/folder/x", "No such file or directory"),
        ("ipc:///" + "x" * 200, "File name too long"),
        ("inproc://x", "Protocol not supported"),
    ],
)
def test_what_cannot_be_bound_says_why(endpoint: str, says: str) -> None:
    with pytest.raises(FailedPrecondition, match=f"cannot bind to .*: {says}"):
        listening.Listener(endpoint)


def test_a_taken_port_is_refused(bench: Bench) -> None:
    with pytest.raises(FailedPrecondition, match="Address already in use; stop what listens there, or use"):
        Bench(backend=bench.ports.backend)


# --- shared memory --------------------------------------------------------------------------------------------------

needs_sharing = pytest.mark.skipif(not segment.SUPPORTED, reason="this system has no memory to share")
ASKED = wire.Request(SESSION, 1, "echo", 0, 10**6, 0)
GIVEN = wire.Dispatch(SESSION, 1, 1, "echo", 1, 10**6)
ANSWERED = wire.Result(SESSION, 1, 1, 0, 0, 0)
LONG = os.urandom(100_000)


@pytest.fixture
def shared() -> Iterator[Bench]:
    bench = Bench(Sharing(1 << 20))
    yield bench
    bench.close()


def next_message(bench: Bench, stream: Stream) -> list[Any]:
    found: list[list[Any]] = []
    bench.until(lambda: found.extend(stream.receive()) or found)
    (frames,) = found
    return frames


def lent(bench: Bench, client: Stream, own: Sharing) -> tuple[memoryview, FromClient]:
    """A request whose long tensor lies in the client's memory."""
    memory = own.memory(len(LONG))
    memory[:] = LONG
    bench.send(client, *own.lent([wire.encode(ASKED), b"head", memory, b"tail"]))
    event = bench.first(FromClient)
    assert isinstance(event, FromClient)
    return memory, event


@needs_sharing
def test_references_are_passed_on_and_others_get_the_bytes(shared: Bench) -> None:
    own, theirs = Sharing(1 << 20), Sharing(1 << 20)
    client = shared.peer(shared.ports.frontend, own)
    workers = [shared.peer(shared.ports.backend, theirs), shared.peer(shared.ports.backend)]
    ids = []
    for worker in workers:
        shared.send(worker, BEAT)
        ids.append(shared.first(FromWorker).peer)  # type: ignore[union-attr]
    memory, event = lent(shared, client, own)
    assert [len(frame) for frame in event.payload] == [4, len(LONG), 4]
    assert type(event.payload[1]) is SharedFrame
    shared.ports.send([ToWorker(id, GIVEN, event.payload) for id in ids])
    passed, inline = (next_message(shared, worker) for worker in workers)
    assert type(passed[2]) is SharedFrame
    assert theirs.read(passed)[1:] == [b"head", memory, b"tail"]
    assert [bytes(frame) for frame in inline[1:]] == [b"head", LONG, b"tail"]


@needs_sharing
def test_what_lies_in_the_brokers_process_is_passed_on_too(shared: Bench) -> None:
    theirs = Sharing(1 << 20)
    worker = shared.peer(shared.ports.backend, theirs)
    shared.send(worker, BEAT)
    sharing = shared.ports._sharing
    assert sharing is not None
    memory = sharing.memory(len(LONG))
    memory[:] = LONG
    shared.ports.send([ToWorker(shared.first(FromWorker).peer, GIVEN, [b"head", memory])])  # type: ignore[union-attr]
    passed = next_message(shared, worker)
    assert type(passed[2]) is SharedFrame
    assert theirs.read(passed)[2] == LONG


@needs_sharing
def test_bytes_that_are_gone_fail_their_request_only(shared: Bench) -> None:
    own = Sharing(1 << 20)
    client, worker = shared.peer(shared.ports.frontend, own), shared.peer(shared.ports.backend)
    shared.send(worker, BEAT)
    id = shared.first(FromWorker).peer  # type: ignore[union-attr]
    memory, event = lent(shared, client, own)
    del memory
    own.tick()
    assert own.arena.used == 0
    shared.ports.send([ToWorker(id, GIVEN, event.payload)])
    failed = shared.first(FromWorker)
    assert isinstance(failed, FromWorker) and isinstance(failed.message, wire.Failed)
    assert (failed.peer, failed.message[:4]) == (id, (SESSION, 1, 1, "UNAVAILABLE"))
    other = shared.peer(shared.ports.frontend)
    shared.send(other, PING)
    asks = shared.first(FromClient).peer  # type: ignore[union-attr]
    shared.ports.send([ToClient(asks, ANSWERED, event.payload), ToClient(asks, wire.Pong(SESSION, [1]))])
    messages: list[list[Any]] = []
    shared.until(lambda: messages.extend(other.receive()) or len(messages) == 2)
    error, pong = (wire.decode(frames[0], wire.TO_CLIENT) for frames in messages)
    assert isinstance(error, wire.Error) and error[:3] == (SESSION, 1, "UNAVAILABLE")
    assert isinstance(pong, wire.Pong)
    assert [len(frames) for frames in messages] == [1, 1]


@needs_sharing
def test_a_wrong_table_ends_its_connection_and_one_of_a_peer_that_does_not_share_is_malformed(shared: Bench) -> None:
    own = Sharing(1 << 20)
    client, other = shared.peer(shared.ports.frontend, own), shared.peer(shared.ports.frontend)
    reference = Reference(1, 1, bytes(16), 0, 0, 0, 1 << 20)
    shared.send(other, *take_out([wire.encode(ASKED), b"head", SharedFrame(reference)]))
    malformed = shared.first(Malformed)
    assert isinstance(malformed, Malformed)
    assert malformed.error.__traceback__ is None, "it would keep all events of its turn for ever"
    shared.send(client, *take_out([wire.encode(ASKED), b"head", SharedFrame(reference._replace(nbytes=1 << 40))]))
    with pytest.raises(ConnectionError):
        shared.until(lambda: client.receive() is None)
    assert any("a shared frame has 1099511627776 bytes; the limit is" in line for line in shared.log())


@needs_sharing
def test_memory_of_peers_that_are_gone_is_given_back(shared: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Sharing(1 << 20)
    client = shared.peer(shared.ports.frontend, own)
    sharing = shared.ports._sharing
    assert sharing is not None and sharing.reads
    client.close()
    monkeypatch.setattr(readers, "IDLE", 0.0)
    shared.ahead += 60
    shared.until(lambda: not sharing.reads)
