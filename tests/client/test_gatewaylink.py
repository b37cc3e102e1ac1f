"""The event loop's own connection, against sockets of libzmq and against peers that misbehave."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
import zmq

from zmq_offload.client.gatewaylink import GatewayLink
from zmq_offload.client.session import Send
from zmq_offload.errors import InvalidArgument
from zmq_offload.net import transport
from zmq_offload.net.frames import encode
from zmq_offload.net.keys import new_keys, read_pair
from zmq_offload.net.sharedmemory import segment
from zmq_offload.net.sharedmemory.references import Reference, SharedFrame
from zmq_offload.net.sharedmemory.sharing import SHARED_FROM, Sharing
from zmq_offload.net.zmtp import HELLO, Peer
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.packed import pack

SESSION = bytes(range(16))
READY = (
    b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    + b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER"
)  # fmt: skip
SECONDS = 20.0


def run(test: Coroutine[Any, Any, None]) -> None:
    uvloop.run(asyncio.wait_for(test, SECONDS))


@contextmanager
def router(endpoint: str = "tcp://127.0.0.1:0", keys: Path | None = None) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as bound:
        bound.linger = 0
        bound.rcvtimeo = round(SECONDS * 1000)
        if keys is not None:
            pair = read_pair(str(keys))
            bound.curve_server, bound.curve_secretkey, bound.curve_publickey = True, pair.secret, pair.public
        bound.bind(endpoint.replace(":0", ":*"))
        yield bound


def place_of(bound: zmq.Socket[bytes]) -> str:
    return bound.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


@asynccontextmanager
async def linked(*endpoints: str) -> AsyncIterator[GatewayLink]:
    link = GatewayLink(endpoints, None, 1 << 27)
    watch(link)
    try:
        yield link
    finally:
        link.close()


class _Nobody:
    def ready(self) -> None:
        """Messages have arrived."""


_NOBODY = _Nobody()


def watch(link: GatewayLink) -> None:
    """Let the running loop drive a connection."""
    link.watch(asyncio.get_running_loop(), _NOBODY.ready)


def ask(link: GatewayLink, number: int, *payload: bytes | memoryview) -> None:
    link.send(Send(wire.Request(SESSION, number, "echo", 0, 10**6, 0), payload))
    link.flush()


async def received(link: GatewayLink) -> list[tuple[wire.ToClient, list[bytes]]]:
    """The next messages."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    link.watch(loop, came.set)
    if not link.waiting():
        await came.wait()
    watch(link)
    return [(message, [bytes(each) for each in payload]) for message, payload in link.receive(9)]  # type: ignore[call-overload]


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


async def in_thread(call: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, call)


@pytest.mark.parametrize(
    ("runner", "endpoint"),
    [
        (asyncio.run, "tcp://127.0.0.1:0"),
        (uvloop.run, "tcp://127.0.0.1:0"),
        (uvloop.run, "ipc://{folder}/router"),
        (uvloop.run, "ipc://@{folder}"),
    ],
)
def test_messages_go_to_a_router_and_come_back(runner: Callable[..., None], endpoint: str, tmp_path: Path) -> None:
    large = bytes(range(256)) * 4096 * 64  # 64 MiB
    payload = (b"", b"a", b"b" * 255, b"c" * 256, b"d" * 40_000, large, b"")

    async def test(bound: zmq.Socket[bytes]) -> None:
        async with linked(place_of(bound)) as link:
            ask(link, 1, *payload)
            peer, envelope, *frames = await in_thread(bound.recv_multipart)
            assert wire.decode(envelope, wire.FROM_CLIENT) == wire.Request(SESSION, 1, "echo", 0, 10**6, 0)
            assert tuple(frames) == payload
            await in_thread(lambda: bound.send_multipart([peer, b"not a message"]))
            await in_thread(lambda: bound.send_multipart([peer, wire.encode(wire.Answer(SESSION, 7)), *payload]))
            await in_thread(
                lambda: bound.send_multipart([peer, wire.encode(wire.Answer(SESSION, 8)), large[: 1 << 20]])
            )
            answers: list[Any] = []
            while len(answers) < 2:
                answers += await received(link)
            assert answers == [(wire.Answer(SESSION, 7), [*payload]), (wire.Answer(SESSION, 8), [large[: 1 << 20]])]

    with router(endpoint.format(folder=tmp_path)) as bound:
        runner(asyncio.wait_for(_awaited(test(bound)), SECONDS))


async def _awaited(test: Awaitable[None]) -> None:
    await test


@pytest.mark.parametrize("nbytes", [13, 8193, 1 << 20])
def test_what_is_no_message_is_dropped_whatever_its_length(nbytes: int) -> None:
    async def test(bound: zmq.Socket[bytes]) -> None:
        async with linked(place_of(bound)) as link:
            ask(link, 1)
            peer = (await in_thread(bound.recv_multipart))[0]
            await in_thread(lambda: bound.send_multipart([peer, bytes(nbytes)]))
            await in_thread(lambda: bound.send_multipart([peer, wire.encode(wire.Answer(SESSION, 7)), b""]))
            answers: list[Any] = []
            while not answers:
                answers += await received(link)
            assert answers == [(wire.Answer(SESSION, 7), [b""])]

    with router() as bound:
        run(test(bound))


def test_what_waits_for_a_connection_ends_with_its_call(tmp_path: Path) -> None:
    place = f"ipc://{tmp_path}/router"

    async def test() -> None:
        async with linked(place) as link:
            for number in range(1, 5):
                ask(link, number)
            for ids in ([1], [2]):
                link.send(Send(wire.Ping(SESSION, ids)))
            link.send(Send(wire.Cancel(SESSION, 2)))
            link.still_lent(3)
            ask(link, 4, b"again")
            with router(place) as bound:
                frames = [(await in_thread(bound.recv_multipart))[1:] for _ in range(3)]
                sent = [(wire.decode(envelope, wire.FROM_CLIENT), *payload) for envelope, *payload in frames]
                assert [(type(message), *payload) for message, *payload in sent] == [
                    (wire.Request,), (wire.Request, b"again"), (wire.Ping,),
                ]  # fmt: skip
                assert sent[2] == (wire.Ping(SESSION, [2]),)

    run(test())


def test_a_connection_that_ends_is_made_again(tmp_path: Path) -> None:
    place = f"ipc://{tmp_path}/router"

    async def test() -> None:
        async with linked(place) as link:
            for number in range(1, 4):
                with router(place) as bound:
                    ask(link, number)
                    _, envelope = await in_thread(bound.recv_multipart)
                    assert wire.decode(envelope, wire.FROM_CLIENT).id == number  # type: ignore[union-attr]
                    stream = link._line.stream
                await until(lambda stream=stream: link._line.stream is not stream)  # type: ignore[misc]

    run(test())


def test_a_reader_who_does_not_read_is_not_written_to() -> None:
    async def test() -> None:
        server = socket.create_server(("127.0.0.1", 0))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        server.settimeout(SECONDS)
        async with linked(f"tcp://127.0.0.1:{server.getsockname()[1]}") as link:
            peer, _ = await in_thread(server.accept)
            peer.sendall(READY)
            body = memoryview(bytes(1 << 20))
            ask(link, 1)
            await until(lambda: not link._waiting)
            number = 1
            while not link._waiting:
                number += 1
                ask(link, number, body)
                await asyncio.sleep(0)
            ask(link, number + 1)
            assert number + 1 in link._waiting
            left = len(link._waiting)
            link.send(Send(wire.Cancel(SESSION, 1)))  # of a request that was written
            link.flush()
            peer.settimeout(SECONDS)

            def read() -> int:
                count = 0
                while count < (number - left) << 20:
                    count += len(peer.recv(1 << 20))
                return count

            await in_thread(read)
            await until(lambda: not link._waiting)
            peer.close()
        server.close()

    run(test())


@pytest.mark.parametrize("says", [READY, READY[:64], READY[:5], b""])
def test_a_silent_peer_is_left(says: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CLIENTS_HEARTBEAT", 0.05)
    monkeypatch.setattr(transport, "HANDSHAKE", 0.2)

    async def test() -> None:
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(SECONDS)
        async with linked(f"tcp://127.0.0.1:{server.getsockname()[1]}"):
            first, _ = await in_thread(server.accept)
            first.sendall(says)
            again, _ = await in_thread(server.accept)
            first.settimeout(SECONDS)
            assert await in_thread(lambda: _all_of(first))
            again.close()
            first.close()
        server.close()

    run(test())


def _all_of(peer: socket.socket) -> bytes:
    """What comes until the other end has closed."""
    data = b""
    try:
        while more := peer.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return data


def test_a_peer_of_libzmq_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CLIENTS_HEARTBEAT", 0.05)

    async def test(bound: zmq.Socket[bytes]) -> None:
        async with linked(place_of(bound)) as link:
            ask(link, 1)
            await in_thread(bound.recv_multipart)
            stream = link._line.stream
            await asyncio.sleep(0.5)  # ten heartbeats; their end is what a failure would show
            assert link._line.stream is stream

    with router() as bound:
        bound.setsockopt(zmq.HEARTBEAT_IVL, 50)
        run(test(bound))


@pytest.mark.parametrize("talk", [b"HTTP/1.1 400 Bad Request\r\n\r\n", READY[:64] + b"\x04\x05\x05ERROR"])
def test_who_does_not_complete_the_handshake_is_named(talk: bytes) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with peer:
                peer.sendall(talk)
                _all_of(peer)

    thread = threading.Thread(target=serve)
    thread.start()

    async def test() -> None:
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        async with linked(endpoint) as link:
            await until(lambda: link.refusal() is not None)
            assert str(link.refusal()).startswith(f"the broker at {endpoint} does not complete the handshake: its key")

    try:
        run(test())
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def test_a_broker_with_keys_is_named(tmp_path: Path) -> None:
    async def test(bound: zmq.Socket[bytes]) -> None:
        async with linked(place_of(bound)) as link:
            await until(lambda: link.refusal() is not None)
            assert "only one side has keys" in str(link.refusal())
            link.reconnect(0)
            watch(link)
            assert link.refusal() is None
            await until(lambda: link.refusal() is not None)

    new_keys("broker", tmp_path)
    with router(keys=tmp_path / "broker.key_secret") as bound:
        run(test(bound))


def test_a_message_over_the_limit_ends_the_connection() -> None:
    async def test(bound: zmq.Socket[bytes]) -> None:
        link = GatewayLink(place_of(bound), None, 1000)  # at least limits.UNASKED_BYTES count
        watch(link)
        try:
            ask(link, 1)
            peer, _ = await in_thread(bound.recv_multipart)
            stream = link._line.stream
            answer = wire.encode(wire.Answer(SESSION, 7))
            await in_thread(lambda: bound.send_multipart([peer, answer, bytes(4 << 20)]))
            assert [message for message, _ in await received(link)] == [wire.Answer(SESSION, 7)]
            await in_thread(lambda: bound.send_multipart([peer, answer, bytes((4 << 20) + 1)]))
            await until(lambda: link._line.stream is not stream)
            assert not link.waiting()
        finally:
            link.close()

    with router() as bound:
        run(test(bound))


@pytest.mark.parametrize("endpoint", ["tcp://a..b:5555", "ipc://@nobody-is-there"])
def test_an_endpoint_that_leads_nowhere_is_tried_again(endpoint: str) -> None:
    async def test() -> None:
        async with linked(endpoint) as link:
            await until(lambda: link._line._delay == 4 * transport.RECONNECT)
            assert link.refusal() is None

    asyncio.run(asyncio.wait_for(test(), SECONDS))


def test_a_name_and_an_address_of_ipv6_lead_to_a_broker() -> None:
    async def test(bound: zmq.Socket[bytes], endpoint: str) -> None:
        async with linked(endpoint) as link:
            ask(link, 1)
            await in_thread(bound.recv_multipart)

    with router() as bound:
        run(test(bound, place_of(bound).replace("127.0.0.1", "localhost")))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as bound:
        bound.ipv6, bound.rcvtimeo = True, round(SECONDS * 1000)
        bound.bind("tcp://[::1]:*")
        run(test(bound, place_of(bound)))


def test_a_wrong_endpoint_is_refused_at_once() -> None:
    async def test() -> None:
        with pytest.raises(InvalidArgument, match="the port is missing"):
            GatewayLink("tcp://edge", None, 1000)

    run(test())


def test_the_last_cancel_is_sent_before_the_end() -> None:
    async def test(bound: zmq.Socket[bytes]) -> None:
        link = GatewayLink(place_of(bound), None, 1000)
        watch(link)
        ask(link, 1)
        await in_thread(bound.recv_multipart)
        link.send(Send(wire.Cancel(SESSION, 1)))
        link.flush()
        link.close()
        _, envelope = await in_thread(bound.recv_multipart)
        assert wire.decode(envelope, wire.FROM_CLIENT) == wire.Cancel(SESSION, 1)

    with router() as bound:
        run(test(bound))


def test_what_is_there_is_received_in_one_turn_of_the_loop(tmp_path: Path) -> None:
    answers = b"".join(
        bytes(part) for n in range(9) for part in encode([wire.encode(wire.Answer(SESSION, n)), bytes(38_400)])
    )

    class Turns:
        def __init__(self, link: GatewayLink) -> None:
            self._link = link
            self.messages: list[int] = []

        def ready(self) -> None:
            self.messages.append(len(self._link.receive(9)))

    async def test() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "router"))
            server.listen()
            server.settimeout(SECONDS)
            async with linked(f"ipc://{tmp_path}/router") as link:
                peer, _ = await in_thread(server.accept)
                with peer:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                    peer.sendall(READY)
                    await until(lambda: link._line.is_ready)
                    turns = Turns(link)
                    link.watch(asyncio.get_running_loop(), turns.ready)
                    peer.sendall(answers)
                    await until(lambda: sum(turns.messages) == 9)
                    assert turns.messages == [9]

    run(test())


def test_short_requests_pass_long_ones_of_which_few_are_taken_at_once() -> None:
    long = memoryview(bytes(16 << 20))

    async def test() -> None:
        async with shared(None, None) as (link, broker):
            await until(lambda: link._line.is_ready)
            for number, tensor in ((1, long), (2, long), (3, b"short"), (4, long)):
                ask(link, number, b"head", tensor)
            assert list(link._waiting) == [2, 4]
            link.send(Send(wire.Cancel(SESSION, 2)))
            arrived = [wire.decode(bytes((await broker.requests.get())[0]), wire.FROM_CLIENT) for _ in range(3)]
            assert [message.id for message in arrived] == [3, 1, 4]  # type: ignore[union-attr]
            assert not link._waiting

    run(test())


# --- shared memory --------------------------------------------------------------------------------------------------

needs_sharing = pytest.mark.skipif(not segment.SUPPORTED, reason="this system has no memfd")
MEGABYTE = os.urandom(1024 * 1024)


class _Broker:
    """A broker on a plain socket that may share memory, and that answers what it is told to."""

    def __init__(self, sharing: Sharing | None) -> None:
        self.sharing = sharing
        self.requests: asyncio.Queue[list[Any]] = asyncio.Queue()
        self._peer = Peer(
            1 << 27,
            limits.FRAMES,
            10.0,
            b"ROUTER",
            sharer=sharing,
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        writer.write(HELLO)
        while data := await reader.read(10_000):
            while data:
                room = self._peer.buffer()
                count = min(len(room), len(data))
                room[:count] = data[:count]
                data = data[count:]
                for frames in self._peer.received(count):
                    self.requests.put_nowait(frames)
            writer.writelines(self._peer.answers)
            self._peer.answers = []

    def answer(self, number: int, *frames: Any) -> None:
        whole: list[Any] = [wire.encode(wire.Result(SESSION, number, 1, 0, 0, 0)), *frames]
        self.writer.writelines(encode(self.sharing.lent(whole) if self.sharing else whole))


@asynccontextmanager
async def shared(broker_sharing: Sharing | None, own: Sharing | None) -> AsyncIterator[tuple[GatewayLink, _Broker]]:
    broker = _Broker(broker_sharing)
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    link = GatewayLink(f"tcp://{host}:{port}", None, 1 << 27, own)
    watch(link)
    try:
        yield link, broker
    finally:
        link.close()
        server.close()
        broker.writer.close()


def given(sharing: Sharing, data: bytes) -> Reference:
    reference = sharing.arena.give(data)
    assert reference is not None
    return reference


async def _shares(link: GatewayLink) -> None:
    while not link._line.shares:
        await asyncio.sleep(0.001)


@needs_sharing
def test_long_tensors_go_and_come_by_reference() -> None:
    async def test() -> None:
        own, others = Sharing(8 << 20), Sharing(8 << 20)
        async with shared(others, own) as (link, broker):
            await _shares(link)
            array = np.frombuffer(MEGABYTE, np.uint8)
            payload = link.packed_request("m", pack({"x": array}), None, 1.0, 0)[1]
            ask(link, 1, *payload)  # type: ignore[arg-type]
            frames = await broker.requests.get()
            assert type(frames[2]) is SharedFrame
            assert others.read(frames)[2] == MEGABYTE
            body = own.memory(2 * len(MEGABYTE))  # as a gateway receives it
            body[: len(MEGABYTE)] = MEGABYTE
            ask(link, 2, b"head", body[: len(MEGABYTE)], b"short")
            frames = await broker.requests.get()
            assert [type(frame) for frame in frames] == [bytes, bytes, SharedFrame, bytes]
            assert others.read(frames)[2:] == [MEGABYTE, b"short"]
            broker.answer(1, b"head", SharedFrame(given(others, MEGABYTE)))
            ((message, came),) = await received(link)
            assert (message.id, came) == (1, [b"head", MEGABYTE])  # type: ignore[union-attr]
            del body, frames, payload
            own.tick()
            others.tick()
            assert own.arena.used == others.arena.used == 0

    run(test())


@needs_sharing
def test_a_full_arena_and_short_tensors_go_inline() -> None:
    async def test() -> None:
        own = Sharing(128 * 1024)
        async with shared(Sharing(4096), own) as (link, broker):
            await _shares(link)
            for size in (1024 * 1024, SHARED_FROM - 1):
                payload = link.packed_request("m", pack({"x": np.frombuffer(MEGABYTE[:size], np.uint8)}), None, 1.0, 0)[
                    1
                ]
                ask(link, 1, *payload)  # type: ignore[arg-type]
                assert bytes((await broker.requests.get())[2]) == MEGABYTE[:size]

    run(test())


@needs_sharing
@pytest.mark.parametrize("broker_shares", [False, True])
def test_a_broker_or_a_client_that_does_not_share_gets_bytes(broker_shares: bool) -> None:
    async def test() -> None:
        one = Sharing(8 << 20)
        async with shared(*((one, None) if broker_shares else (None, one))) as (link, broker):
            array = np.frombuffer(MEGABYTE, np.uint8)
            ask(link, 1, *link.packed_request("m", pack({"x": array}), None, 1.0, 0)[1])  # type: ignore[arg-type]
            assert bytes((await broker.requests.get())[2]) == MEGABYTE

    run(test())


@needs_sharing
def test_a_reply_that_cannot_be_read_is_an_error_that_says_so() -> None:
    async def test() -> None:
        others = Sharing(8 << 20)
        async with shared(others, Sharing(8 << 20)) as (link, broker):
            await _shares(link)
            gone = SharedFrame(Reference(others.arena._pid, others.arena.fd, bytes(16), 0, 0, 0, 100))
            broker.answer(1, b"head", gone)
            broker.answer(2, b"head", b"tail")
            replies = await received(link)
            while len(replies) < 2:
                replies += await received(link)
            assert isinstance(replies[0][0], wire.Error)
            assert replies[0][0][:3] == (SESSION, 1, "UNAVAILABLE")
            assert replies[1][0].id == 2  # type: ignore[union-attr]

    run(test())
