"""gRPC with clients of others: grpcio, curl, and single frames."""

from __future__ import annotations

import asyncio
import gzip
import json
import queue
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import grpc
import hpack
import pytest

from tests.gateway.grpc_server import LIMITS, Server, serving
from tests.gateway.http2_peer import Frame, data, headers, settings
from tests.support.certificates import Authority
from zmq_offload.errors import Status
from zmq_offload.gateway.access.decisions import Listed
from zmq_offload.gateway.access.tls import GRPC, Files, context
from zmq_offload.gateway.grpc.messages import prefixed
from zmq_offload.gateway.http2 import frames
from zmq_offload.gateway.http2.errors import ErrorCode
from zmq_offload.gateway.http2.frames import HEAD, PREFACE, frame
from zmq_offload.gateway.statuses import CODES
from zmq_offload.net.credentials import token_entry
from zmq_offload.net.grants import Grant

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, options=OPTIONS) as channel:
        yield channel


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def failing(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as info:
        call()
    return info.value


# grpcio's synchronous client.


@pytest.mark.parametrize("size", [0, 1, 1000, 38_400, 1 << 20, 4 << 20, 64 << 20])
def test_messages_of_any_size_come_back(channel, size):
    echo = channel.unary_unary("/t/Echo")
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    for _ in range(1 if size > 1 << 20 else 3):
        assert echo(message, timeout=30) == message


def test_long_and_short_messages_share_a_connection(channel):
    echo = channel.unary_unary("/t/Echo")
    sizes = [1 << 20, 10, 16_350, 16_384, 1 << 20, 200_000, 33_000, 0, 1 << 20, 300_000, *[500] * 50, 1 << 20, 1 << 20]
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    assert [echo(message, timeout=30) for message in messages] == messages
    calls = [echo.future(message, timeout=30) for message in messages]
    assert [call.result() for call in calls] == messages


def test_many_calls_at_once(channel):
    echo = channel.unary_unary("/t/Echo")
    messages = [bytes([i]) * (100 if i % 2 else 200_000) for i in range(100)]
    calls = [echo.future(message, timeout=30) for message in messages]
    assert [call.result() for call in calls] == messages


def test_more_calls_than_streams_wait_for_their_turn(server, channel):
    wait = channel.unary_unary("/t/Wait")
    calls = [wait.future(b"%d" % i, timeout=30) for i in range(LIMITS.streams + 20)]
    wait_for(lambda: len(server.waiting) == LIMITS.streams)
    replies, server.waiting = server.waiting, []
    server.do(lambda: [reply([b"ok"]) for reply in replies])
    wait_for(lambda: len(server.waiting) == 20)
    replies, server.waiting = server.waiting, []
    server.do(lambda: [reply([b"o", memoryview(b"k")]) for reply in replies])
    assert {call.result() for call in calls} == {b"ok"}


@pytest.mark.parametrize("status", Status)
def test_errors_keep_their_code_and_message(channel, status):
    error = failing(lambda: channel.unary_unary("/t/Fail")(status.value.encode(), timeout=10))
    assert error.code().value[0] == CODES[status].grpc
    assert error.details() == r"ähm: 100 %\nof it"


def test_a_method_that_raises_is_an_internal_error(channel, caplog):
    for call in (channel.unary_unary("/t/Raise"), channel.unary_unary("/t/Broken")):
        assert failing(lambda call=call: call(b"x", timeout=10)).code() is grpc.StatusCode.INTERNAL
    assert caplog.text.count("RuntimeError: as asked") == 2


def test_an_unknown_method_is_unimplemented(channel):
    error = failing(lambda: channel.unary_unary("/t/None")(b"x", timeout=10))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED and error.details() == "method '/t/None' is not here"


def test_the_context_has_deadline_and_metadata(channel):
    reply = channel.unary_unary("/t/Context")(b"", timeout=25, metadata=[("a", "1"), ("b-bin", b"\0\1"), ("a", "2")])
    seen = json.loads(reply)
    assert 20 < seen["timeout"] <= 26 and seen["grant"] == "anyone"
    assert seen["metadata"]["a"] == "1,2" and seen["metadata"]["b-bin"].rstrip("=") == "AAE"
    assert json.loads(channel.unary_unary("/t/Context")(b""))["timeout"] is None


def test_a_client_that_cancels_takes_its_call_back(server, channel):
    server.canceled.clear()
    call = channel.unary_unary("/t/Wait").future(b"x")
    wait_for(lambda: server.waiting)
    call.cancel()
    wait_for(lambda: server.canceled == ["unary"])
    server.do(lambda: server.waiting.pop()([b"late"]))
    assert channel.unary_unary("/t/Echo")(b"x") == b"x"


def test_a_deadline_takes_the_call_back(server, channel):
    server.canceled.clear()
    error = failing(lambda: channel.unary_unary("/t/Wait")(b"x", timeout=0.05))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: server.canceled == ["unary"])
    server.waiting.clear()


def test_a_connection_that_is_lost_takes_its_calls_back(server):
    server.canceled.clear()
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/t/Wait").future(b"x")
        stream = channel.stream_stream("/t/Stream")(iter([b"pause", b"x"]))
        next(stream)
        wait_for(lambda: server.waiting)
    wait_for(lambda: sorted(server.canceled) == ["stream", "unary"])
    assert call.code() is grpc.StatusCode.CANCELLED
    server.do(lambda: server.waiting.pop()([b"late"]))


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_answered_compressed(server, channel, compression):
    message = bytes(100_000)
    assert channel.unary_unary("/t/Echo")(message, compression=compression) == message
    stream = channel.stream_stream("/t/Stream")(iter([message, b"", message]), compression=compression)
    assert list(stream) == [message, b"", message]


def test_too_long_a_message_is_refused():
    with (
        serving(limits=replace(LIMITS, message_bytes=1 << 20)) as server,
        grpc.insecure_channel(server.address, options=OPTIONS) as channel,
    ):
        echo = channel.unary_unary("/t/Echo")
        for size in (1 << 20) + 1, 20 << 20:
            error = failing(lambda size=size: echo(bytes(size)))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details() == f"a message has {size} bytes; at most 1048576 are taken"
        bomb = failing(lambda: echo(bytes(20 << 20), compression=grpc.Compression.Gzip))
        assert bomb.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "decompressed" in bomb.details()
        assert echo(bytes(1 << 20)) == bytes(1 << 20)


def test_no_more_messages_are_held_than_the_limit_says(channel):
    with (
        serving(limits=replace(LIMITS, held_bytes=3 << 20)) as server,
        grpc.insecure_channel(server.address, options=OPTIONS) as channel,
    ):
        wait = channel.unary_unary("/t/Wait")
        calls = [wait.future(bytes(1_000_000)) for _ in range(3)]
        wait_for(lambda: len(server.waiting) == 3)
        error = failing(lambda: channel.unary_unary("/t/Echo")(bytes(1_000_000)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "holds 3145728 bytes" in error.details()
        calls[0].cancel()
        wait_for(lambda: server.canceled)
        messages = [b"x" * 300_000] * 20  # what a method has taken does not count any more
        for compression in grpc.Compression.NoCompression, grpc.Compression.Gzip:
            assert list(channel.stream_stream("/t/Stream")(iter(messages), compression=compression)) == messages
        assert len(channel.unary_unary("/t/Echo")(bytes(1_000_000))) == 1_000_000
        server.do(lambda: [reply([b"ok"]) for reply in server.waiting])
        assert [call.result() for call in calls[1:]] == [b"ok"] * 2


def test_too_much_metadata_is_refused(channel):
    error = failing(lambda: channel.unary_unary("/t/Echo")(b"", metadata=[("a", "x" * 8192)]))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "bytes of metadata" in error.details()


def test_replies_that_their_client_does_not_take_count_as_held():
    """Whether its window is shut, or it does not read its socket."""
    with serving(limits=replace(LIMITS, held_bytes=3_000_000)) as server:
        held = lambda: server.do(lambda: server.grpc.held)  # noqa: E731
        with Wire(server, PREFACE + settings(window=0)) as shut, Wire(server) as deaf:
            for number in (1, 3):
                shut.send(headers(number, call()), data(number, message(bytes(1_000_000)), end=True))
            wait_for(lambda: held() == 2_000_010)
            shut.send(headers(5, call()), data(5, message(bytes(1_000_000)), end=True))
            assert shut.answer(5)["grpc-status"] == str(CODES[Status.RESOURCE_EXHAUSTED].grpc)
            shut.send(frames.reset(1, ErrorCode.CANCEL))
            wait_for(lambda: held() == 1_000_005)
            deaf.send(settings(window=frames.LARGEST_WINDOW), frames.window_update(0, 1 << 30))
            deaf.socket.settimeout(0.3)
            many = [headers(n, call()) + data(n, message(bytes(500_000)), end=True) for n in range(1, 200, 2)]
            with pytest.raises(TimeoutError):
                deaf.send(*many)
            assert held() > 3_000_000
        wait_for(lambda: held() == 0)


def test_little_that_a_client_does_not_read_counts_too(monkeypatch):
    monkeypatch.setattr("zmq_offload.gateway.connections.SWEEP", 0.05)

    def held_after_a_look():
        for connection in list(server.grpc.writing):
            connection.look()
        return server.grpc.held

    start = PREFACE + settings(window=frames.LARGEST_WINDOW) + frames.window_update(0, 1 << 30)
    with serving() as server, Wire(server, start) as deaf:
        for number in range(1, 121, 2):
            deaf.send(headers(number, call("/t/Wait")), data(number, message(b""), end=True))
            wait_for(lambda: server.waiting)
            server.do(lambda: server.waiting.pop()([bytes(300_000)]))
            if held := server.do(held_after_a_look):
                break  # the system takes some replies before
        assert 0 < held <= 300_100
        deaf.socket.settimeout(0.02)
        while server.do(lambda: server.grpc.held):  # it is looked at again
            with suppress(TimeoutError):
                deaf.socket.recv(1 << 20)


def test_a_reply_is_refused_if_clients_do_not_take_the_replies_before():
    """A small message may have a large reply."""
    with serving(limits=replace(LIMITS, held_bytes=1_000_000)) as server:
        with Wire(server, PREFACE + settings(window=0)) as shut:
            for number in (1, 3, 5):
                shut.send(headers(number, call("/t/Wait")), data(number, message(b""), end=True))
            shut.send(headers(7, call("/t/Stream")), data(7, message(b"large")))
            wait_for(lambda: len(server.waiting) == 3)
            for _ in range(2):
                server.do(lambda: server.waiting.pop(0)([bytes(600_000)]))
            wait_for(lambda: server.do(lambda: server.grpc.held) > 1_200_000)
            exhausted = str(CODES[Status.RESOURCE_EXHAUSTED].grpc)
            server.do(lambda: server.waiting.pop()([bytes(600_000)]))
            assert shut.answer(5)["grpc-status"] == exhausted
            server.do(lambda: server.streams[0].writer.send([b"more"]))
            shut.send(frames.window_update(7, 100))
            assert shut.answer(7)["grpc-status"] == exhausted
            wait_for(lambda: server.canceled == ["stream"])
        wait_for(lambda: server.do(lambda: server.grpc.held) == 0)


def test_a_reply_counts_as_held_while_it_is_compressed(server, channel):
    reply = bytes(1 << 20)
    call = channel.unary_unary("/t/Wait").future(b"x", compression=grpc.Compression.Gzip)
    wait_for(lambda: server.waiting)

    def answer():
        server.waiting.pop()([reply])
        return server.grpc.held

    assert server.do(answer) >= len(reply)
    assert call.result() == reply
    wait_for(lambda: server.do(lambda: server.grpc.held) == 0)


def test_a_stream_of_messages(channel):
    messages = [bytes([i]) * (i * 5000) for i in range(60)]
    assert list(channel.stream_stream("/t/Stream")(iter(messages), timeout=30)) == messages
    assert list(channel.stream_stream("/t/Stream")(iter([]), timeout=30)) == []
    assert channel.stream_unary("/t/Stream")(iter([b"one"]), timeout=30) == b"one"


def test_answers_of_a_stream_come_while_it_goes_on(channel):
    more = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"first"
        assert more.wait(10)
        yield b"second"

    stream = channel.stream_stream("/t/Stream")(messages(), timeout=30)
    assert next(stream) == b"first"
    more.set()
    assert list(stream) == [b"second"]


def test_the_end_of_a_stream_with_an_error(channel, server, caplog):
    for word, code in (
        ("error NOT_FOUND", grpc.StatusCode.NOT_FOUND),
        ("refuse UNAVAILABLE", grpc.StatusCode.UNAVAILABLE),
        ("raise", grpc.StatusCode.INTERNAL),
    ):
        messages = [b"x" * 100, word.encode(), b"y" * 100]
        stream = channel.stream_stream("/t/Stream")(iter(messages), timeout=30)
        assert next(stream) == b"x" * 100
        assert failing(lambda stream=stream: next(stream)).code() is code
        assert server.streams[-1].messages == 2
    assert caplog.text.count("RuntimeError: as asked") == 1


def test_a_stream_that_is_paused_takes_nothing(channel, server):
    stream = channel.stream_stream("/t/Stream")(iter([b"pause", *[b"x" * 500_000] * 10]), timeout=30)
    assert next(stream) == b"pause"
    echo = server.streams[-1]
    assert channel.unary_unary("/t/Echo")(b"x") == b"x"
    assert echo.messages == 1
    server.do(echo.writer.resume)
    assert list(stream) == [b"x" * 500_000] * 10


def test_a_client_that_reads_nothing_stops_its_stream(channel, server):
    """The replies that wait are few, and the server takes no further messages until they are read."""
    stream = channel.stream_stream("/t/Stream")(iter([b"x" * 1_000_000] * 100), timeout=60)
    assert next(stream)
    echo = server.streams[-1]
    seen = -1
    while echo.messages != seen:
        seen = echo.messages
        time.sleep(0.2)
    assert seen < 60
    assert sum(1 for _ in stream) == 99


# grpcio's client for asyncio.


def test_the_client_for_asyncio(server):
    async def run() -> None:
        async with grpc.aio.insecure_channel(server.address, options=OPTIONS) as channel:
            echo = channel.unary_unary("/t/Echo")
            messages = [bytes([i]) * 10_000 for i in range(100)]
            assert await asyncio.gather(*(echo(message) for message in messages)) == messages
            assert await echo(bytes(5 << 20)) == bytes(5 << 20)

            async def send() -> Any:
                for message in messages[:5]:
                    yield message

            stream = channel.stream_stream("/t/Stream")(send())
            assert [message async for message in stream] == messages[:5]
            with pytest.raises(grpc.aio.AioRpcError) as info:
                await channel.unary_unary("/t/Wait")(b"", timeout=0.05)
            assert info.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(run())
    server.waiting.clear()


# Who may call.


def test_each_call_has_the_grant_of_its_token():
    access = Listed({token_entry("secret"): Grant("app", None)}, certificates=False)
    with serving(access) as server, grpc.insecure_channel(server.address) as channel:
        context = channel.unary_unary("/t/Context")
        assert json.loads(context(b"", metadata=[("authorization", "Bearer secret")]))["grant"] == "app"
        for metadata in ([], [("authorization", "Bearer other")]):
            error = failing(lambda metadata=metadata: context(b"", metadata=metadata))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert failing(lambda: channel.unary_unary("/t/None")(b"")).code() is grpc.StatusCode.UNAUTHENTICATED


def test_who_has_no_credential_cannot_send_much():
    access = Listed({token_entry("secret"): Grant("app", None)}, certificates=False)
    with serving(access) as server, grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert json.loads(check(bytes(4096)))["grant"] == "health check"
        assert failing(lambda: check(bytes(4097))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert json.loads(check(bytes(5000), metadata=[("authorization", "Bearer secret")]))["grant"] == "app"


def test_what_who_has_no_credential_cannot_do():
    """Without limits of their own, strangers could fill the memory: with bombs, metadata, calls and watches."""
    access = Listed({token_entry("secret"): Grant("app", None)}, certificates=False)
    with serving(access) as server, grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        token, large = ("authorization", "Bearer secret"), ("x", "y" * 4096)
        assert failing(lambda: check(b"", metadata=[large])).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert json.loads(check(b"", metadata=[large, token]))["grant"] == "app"
        gzip = grpc.Compression.Gzip
        assert "without a credential" in failing(lambda: check(bytes(2000), compression=gzip)).details()
        assert json.loads(check(bytes(2000), compression=gzip, metadata=[token]))["grant"] == "app"
        over = threading.Event()

        def asked():
            yield b"x"
            over.wait(20)

        watches = [channel.stream_stream("/grpc.health.v1.Health/Watch")(asked()) for _ in range(16)]
        assert [next(watch) for watch in watches] == [b"x"] * 16
        assert "send a credential with more" in failing(lambda: check(b"")).details()
        assert json.loads(check(b"", metadata=[token]))["grant"] == "app"
        over.set()


def test_metadata_counts_as_held():
    with serving(limits=replace(LIMITS, held_bytes=10_000)) as server:
        channels = [grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(2)]
        with channels[0] as channel, channels[1] as other:
            waiting = channel.unary_unary("/t/Wait").future(b"", metadata=[("x", "y" * 6000)])
            wait_for(lambda: server.waiting)
            error = failing(lambda: other.unary_unary("/t/Context")(b"", metadata=[("x", "y" * 6000)]))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            waiting.cancel()
            wait_for(lambda: not server.do(lambda: server.grpc.held))
            assert json.loads(other.unary_unary("/t/Context")(b"", metadata=[("x", "y" * 6000)]))


def test_tls_with_certificates_of_clients(tmp_path):
    ca = Authority(tmp_path)
    ours, theirs = ca.make("server"), ca.make("camera", "DNS:camera.example")
    access = Listed({"dns:camera.example": Grant("camera")}, certificates=True)
    tls = context(Files(str(ours.certificate), str(ours.key), ca.file), GRPC)
    root = ca.pair.certificate.read_bytes()
    known = grpc.ssl_channel_credentials(root, theirs.key.read_bytes(), theirs.certificate.read_bytes())
    with serving(access, tls=tls) as server:
        with grpc.secure_channel(f"localhost:{server.port}", known, OPTIONS) as channel:
            assert json.loads(channel.unary_unary("/t/Context")(b"", timeout=10))["grant"] == "camera"
            messages = [bytes(1 << 22), b"x" * 100_000, b""]
            assert [channel.unary_unary("/t/Echo")(message, timeout=30) for message in messages] == messages
            assert list(channel.stream_stream("/t/Stream")(iter(messages), timeout=30)) == messages
        with grpc.secure_channel(f"localhost:{server.port}", grpc.ssl_channel_credentials(root)) as channel:
            error = failing(lambda: channel.unary_unary("/t/Context")(b"", timeout=10))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        client = ssl.create_default_context(cafile=ca.file)
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain,
            client.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):  # without ALPN
            wrapped.sendall(PREFACE)
            received = b"".join(iter(lambda: wrapped.recv(1000), b""))
            assert b"the client does not offer h2 by ALPN" in received


# Draining.


def test_a_server_that_drains_finishes_its_calls_and_resets_nothing():
    with serving() as server, grpc.insecure_channel(server.address) as channel:
        calls = [channel.unary_unary("/t/Wait").future(b"x") for _ in range(10)]
        stream = channel.stream_stream("/t/Stream")(iter([b"pause", b"last"]))
        assert next(stream) == b"pause"
        wait_for(lambda: len(server.waiting) == 10)
        (connection,) = server.grpc._open
        wait_for(lambda: all(call._complete for call in connection._calls.values()))
        server.do(server.grpc.drain)
        server.do(lambda: [reply([b"done"]) for reply in server.waiting])
        assert [call.result() for call in calls] == [b"done"] * 10
        assert server.do(lambda: server.grpc.connections) == 1
        server.do(server.streams[-1].writer.resume)
        assert list(stream) == [b"last"]
        wait_for(lambda: server.do(lambda: server.grpc.connections) == 0)


def test_a_server_that_drains_ends_streams_that_go_on():
    """After the answers to what the method took; the rest is refused with a status, not by a reset."""
    with serving() as server, grpc.insecure_channel(server.address) as channel:
        messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        stream = channel.stream_stream("/t/Stream")(iter(messages.get, None))
        for number in range(3):
            messages.put(b"pause" if number == 2 else b"go on")
            assert next(stream)
        messages.put(b"too many")
        taken = server.streams[-1]
        wait_for(lambda: server.do(lambda: taken.writer._queue))  # type: ignore[attr-defined]
        server.do(server.grpc.drain)
        messages.put(b"too late")
        error = failing(lambda: list(stream))
        assert error.code() is grpc.StatusCode.UNAVAILABLE and "the gateway is stopping" in error.details()
        assert taken.messages == 3 and not taken.ended
        wait_for(lambda: server.do(lambda: server.grpc.connections) == 0)
        messages.put(None)


# curl, and single frames.


def curl(*arguments: str) -> str:
    command = ["curl", "-s", "--max-time", "10", "--http2-prior-knowledge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_what_is_no_call_has_an_http_status(server):
    url = f"http://{server.address}/t/Echo"
    status = ("-o", "/dev/null", "-w", "%{http_code}")
    assert curl(*status, url) == "405"
    assert curl(*status, "-d", "x", url) == "415"


def test_what_is_no_call_is_answered_after_its_data(server):
    with Wire(server) as wire:
        wire.send(headers(1), headers(3), headers(5), data(1, b"x"), data(3, b"x", end=True))
        wire.send(frames.reset(5, ErrorCode.CANCEL))
        assert wire.until(frames.HEADERS).stream == 3


def test_a_call_by_curl(server, tmp_path):
    (tmp_path / "message").write_bytes(b"\0\0\0\0\3abc")
    grpc_call = ("-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", f"@{tmp_path}/message")
    sent = curl("-i", *grpc_call, f"http://{server.address}/t/Echo")
    assert sent.startswith("HTTP/2 200") and "\x03abc" in sent and "grpc-status: 0" in sent


@pytest.mark.skipif(not shutil.which("h2load"), reason="h2load (nghttp2-client) is not installed")
@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_calls_by_h2load(server, tmp_path, size):
    (tmp_path / "message").write_bytes(message(bytes(size)))
    head = ("-H", "content-type: application/grpc", "-H", "te: trailers", "-d", f"{tmp_path}/message")
    load = ("h2load", "-n", "200", "-c", "4", "-m", "10", "-w", "24", "-W", "24")
    shown = subprocess.run(
        [*load, *head, f"http://{server.address}/t/Echo"], capture_output=True, text=True, check=True
    )
    assert "200 succeeded, 0 failed, 0 errored, 0 timeout" in shown.stdout
    assert f"({200 * (size + 5)}) data" in shown.stdout


class Wire:
    """A connection of bytes."""

    def __init__(self, server: Server, first: bytes = PREFACE + settings(window=1 << 20)) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self._file = self.socket.makefile("rb")
        self.decoder = hpack.Decoder()
        self.send(first)

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def frame(self) -> Frame | None:
        """The next frame, or None at the end of the connection."""
        head = self._file.read(HEAD.size)
        if not head:
            return None
        word, flags, stream = HEAD.unpack(head)
        return Frame(word & 0xFF, flags, stream, self._file.read(word >> 8))

    def until(self, *kinds: int) -> Frame:
        """The next frame of these kinds."""
        while frame := self.frame():
            if frame.kind in kinds:
                return frame
        raise EOFError

    def answer(self, stream: int) -> dict[str, str]:
        """The fields of the head and the trailers of a stream's response."""
        fields: dict[str, str] = {}
        while True:
            frame = self.until(frames.HEADERS)
            decoded = dict(self.decoder.decode(frame.payload))
            if frame.stream == stream:
                fields.update(decoded)
                if frame.flags & frames.END_STREAM:
                    return fields

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()


def call(path: str = "/t/Echo", *more: tuple[str, str]) -> list[tuple[str, str]]:
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "h")]
    return [*pseudo, ("content-type", "application/grpc"), ("te", "trailers"), *more]


def message(payload: bytes, compressed: bool = False) -> bytes:
    return b"".join(prefixed([payload], compressed))


@pytest.mark.parametrize(
    ("more", "payload", "code"),
    [
        ((), b"", Status.INVALID_ARGUMENT),
        ((), message(b"a") + message(b"b"), Status.INVALID_ARGUMENT),
        ((), message(b"abc")[:-1], Status.INVALID_ARGUMENT),
        ((), b"\0\0", Status.INVALID_ARGUMENT),
        ((), b"\2\0\0\0\0", Status.INVALID_ARGUMENT),
        ((), message(b"abc", True), Status.INTERNAL),
        ((("grpc-encoding", "gzip"),), message(b"abc", True), Status.INVALID_ARGUMENT),
        ((("grpc-encoding", "br"),), message(b""), Status.UNIMPLEMENTED),
        ((("grpc-timeout", "soon"),), message(b""), Status.INVALID_ARGUMENT),
        ((), b"\0\xff\xff\xff\xff", Status.RESOURCE_EXHAUSTED),
    ],
)
def test_a_broken_call_is_refused_and_its_connection_lives_on(server, more, payload, code):
    with Wire(server) as wire:
        wire.send(headers(1, call("/t/Echo", *more)), data(1, payload, end=True))
        assert wire.answer(1)["grpc-status"] == str(CODES[code].grpc)
        wire.send(headers(3, call()), data(3, message(b"x"), end=True))
        assert wire.answer(3)["grpc-status"] == "0"


def test_a_call_ends_by_trailers_or_without_any_data(server):
    with Wire(server) as wire:
        wire.send(headers(1, call()), data(1, message(b"x")), headers(1, [("x", "y")], end=True))
        assert wire.answer(1)["grpc-status"] == "0"
        wire.send(headers(3, call("/t/Stream"), end=True), headers(5, call(), end=True))
        assert wire.answer(3)["grpc-status"] == "0"
        assert wire.answer(5)["grpc-status"] == str(CODES[Status.INVALID_ARGUMENT].grpc)


def test_pings_are_answered(server):
    with Wire(server) as wire:
        wire.send(frame(frames.PING, 0, 0, b"12345678"))
        assert wire.until(frames.PING) == Frame(frames.PING, frames.ACK, 0, b"12345678")


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PREFACE + data(1, b"x"), b"\x16\x03\x01"])
def test_what_is_no_http2_is_told_and_closed_without_a_reset(server, first):
    with Wire(server, first) as wire:
        assert wire.until(frames.GOAWAY).number == ErrorCode.PROTOCOL_ERROR
        wire.send(bytes(1000))
        assert wire.frame() is None


def test_a_reply_that_its_client_does_not_take_is_dropped_when_the_client_cancels(server):
    with Wire(server, PREFACE + settings(window=10)) as wire:
        for number in (1, 3):
            wire.send(headers(number, call()), data(number, message(bytes(100)), end=True))
            wire.until(frames.DATA)
        wire.send(frames.window_update(1, 1000), frames.reset(3, ErrorCode.CANCEL))
        assert wire.answer(1)["grpc-status"] == "0"
        wire.send(frame(frames.PING, 0, 0, b"12345678"))
        assert wire.until(frames.PING, frames.DATA).kind == frames.PING


def test_clients_that_make_no_progress_are_ended(monkeypatch):
    monkeypatch.setattr("zmq_offload.gateway.connections.SWEEP", 0.05)
    monkeypatch.setattr("zmq_offload.gateway.grpc.connection._LINGER", 0.1)
    limits = replace(LIMITS, receive=0.2, idle=0.6)
    with serving(limits=limits) as server, ExitStack() as stack:
        full = stack.enter_context(Wire(server))
        full.send(settings(window=frames.LARGEST_WINDOW), frames.window_update(0, 1 << 30), headers(1, call()))
        big = message(bytes(30 << 20))
        for start in range(0, len(big), 1 << 20):
            full.send(data(1, big[start : start + (1 << 20)]))
        full.send(data(1, b"", end=True))
        lively = stack.enter_context(Wire(server))
        lively.send(headers(1, call("/t/Wait")), data(1, message(b"x"), end=True), headers(3))
        half = stack.enter_context(Wire(server))
        half.send(headers(1, call()), data(1, message(b"abc")[:-1]))
        half.send(headers(3, call("/t/Stream")), data(3, message(b"abc")[:-1]))
        half.send(headers(5, call("/t/Stream")), data(5, message(b"abc")))
        deaf = stack.enter_context(Wire(server))
        deaf.send(settings(window=10), headers(1, call()), data(1, message(bytes(100)), end=True))
        silent = stack.enter_context(Wire(server, b""))
        idle = stack.enter_context(Wire(server))
        assert silent.until(frames.GOAWAY).number == ErrorCode.NO_ERROR and silent.frame() is None
        assert idle.until(frames.GOAWAY).payload.endswith(b"the connection is idle") and idle.frame() is None
        deadline = str(CODES[Status.DEADLINE_EXCEEDED].grpc)
        assert half.answer(1)["grpc-status"] == half.answer(3)["grpc-status"] == deadline
        assert deaf.until(frames.RST_STREAM).number == ErrorCode.CANCEL
        wait_for(lambda: server.do(lambda: server.grpc.connections) <= 3)
        assert lively.answer(3)[":status"] == "415"
        server.do(lambda: server.waiting.pop()([b"ok"]))
        assert lively.answer(1)["grpc-status"] == "0"
        half.send(data(5, b"", end=True))
        assert half.answer(5)["grpc-status"] == "0"


@pytest.mark.parametrize(
    "begun", [frames.HEAD.pack(5000 << 8 | frames.HEADERS, 0, 1) + b"x", frame(frames.HEADERS, 0, 1, b"")]
)
def test_headers_that_do_not_come_end_the_connection(monkeypatch, begun):
    monkeypatch.setattr("zmq_offload.gateway.connections.SWEEP", 0.05)
    monkeypatch.setattr("zmq_offload.gateway.grpc.connection._LINGER", 0.1)
    with serving(limits=replace(LIMITS, receive=0.2)) as server, Wire(server) as wire:
        wire.send(begun)
        assert wire.until(frames.GOAWAY).payload.endswith(b"the headers of a call are late")
        assert wire.frame() is None


def test_a_connection_too_many_is_refused():
    with serving(limits=replace(LIMITS, connections=1)) as server, Wire(server) as first:
        first.until(frames.SETTINGS)
        with Wire(server) as second:
            assert second.until(frames.GOAWAY).number == ErrorCode.ENHANCE_YOUR_CALM
            assert second.frame() is None


def test_connections_far_too_many_take_no_files():
    with serving(limits=replace(LIMITS, connections=1)) as server, ExitStack() as stack:
        stack.enter_context(Wire(server)).until(frames.SETTINGS)
        for _ in range(16):
            assert stack.enter_context(Wire(server)).until(frames.GOAWAY).number == ErrorCode.ENHANCE_YOUR_CALM
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as many:
            assert many.recv(1) == b""
        assert server.do(lambda: server.grpc.connections) == 17


@pytest.mark.parametrize("path", ["/t/Echo", "/t/Stream"])
def test_a_call_does_not_wait_for_the_compression_of_anothers_messages(server, path):
    """Neither while a message is decompressed, nor while the reply is compressed."""
    small, large = message(b"x"), message(gzip.compress(bytes(4 << 20)), True)
    asks = call(path, ("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip"))
    with Wire(server) as wire:
        wire.send(headers(1, asks), data(1, large, end=True), headers(3, call()), data(3, small, end=True))
        ended = []
        received = bytearray()
        while len(ended) < 2:
            frame = wire.until(frames.HEADERS, frames.DATA)
            if frame.kind == frames.DATA and frame.stream == 1:
                received += frame.payload
            if frame.flags & frames.END_STREAM:
                ended.append(frame.stream)
        assert ended == [3, 1]
        assert gzip.decompress(received[5:]) == bytes(4 << 20)


def test_long_work_of_many_calls_leaves_time_for_others(server):
    order: list[str] = []

    def turn() -> None:
        order.append("others")
        if len(order) < 6:
            server.loop.call_soon(turn)

    def begin() -> None:
        for _ in range(3):
            server.grpc.later(lambda: order.append("part"))
        server.loop.call_soon(turn)

    server.do(begin)
    wait_for(lambda: len(order) == 6)
    assert order == ["part", "others"] * 3


def test_messages_of_a_stream_keep_their_order_while_they_are_compressed(channel):
    messages = [bytes([number]) * (number % 3 * 3_000_000) for number in range(12)]
    stream = channel.stream_stream("/t/Stream")
    assert list(stream(iter(messages), compression=grpc.Compression.Gzip)) == messages
    assert failing(lambda: list(stream(iter([bytes(1_000_000), b"error INTERNAL"]), compression=grpc.Compression.Gzip)))


@pytest.mark.parametrize("path", ["/t/Echo", "/t/Stream"])
def test_a_client_that_is_gone_during_compression_harms_nothing(server, channel, path):
    asks = call(path, ("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip"))
    with Wire(server) as wire:
        for stream in 1, 3:
            wire.send(headers(stream, asks), data(stream, message(gzip.compress(bytes(4 << 20)), True), end=True))
        wire.send(frame(frames.RST_STREAM, 0, 1, bytes(4)))
    wait_for(lambda: server.grpc.connections <= 1 and not server.grpc.held)
    assert channel.unary_unary("/t/Echo")(b"x") == b"x"


def test_a_message_that_comes_late_has_less_of_the_deadline(server):
    with Wire(server) as wire:
        for stream, path in (1, "/t/Context"), (3, "/t/Stream"):
            wire.send(headers(stream, call(path, ("grpc-timeout", "10S"))), frame(frames.PING, 0, 0, b"12345678"))
        wire.until(frames.PING)
        wire.until(frames.PING)
        time.sleep(0.02)
        wire.send(data(1, message(b""), end=True), data(3, message(b"left")))
        left = [json.loads(wire.until(frames.DATA).payload[5:])["timeout"], float(wire.until(frames.DATA).payload[5:])]
        time.sleep(0.02)
        wire.send(data(3, message(b"left"), end=True))
        left.append(float(wire.until(frames.DATA).payload[5:]))
        assert 9.99 > left[0] > 0 and 9.99 > left[1] > left[2] > 0  # each call has its own start


def test_a_call_ends_when_its_memory_was_ready_for_bytes_that_did_not_come(server):
    """The event loop asks for memory before it knows whether bytes are there. What comes later is not the message's."""
    begun = message(bytes(200_000))
    with Wire(server) as wire:
        wire.send(headers(1, call("/t/Stream")), data(1, begun)[: HEAD.size + 10])
        wait_for(lambda: server.do(lambda: [one for one in server.grpc._open if one.http2.arriving()]))
        (connection,) = server.do(lambda: [one for one in server.grpc._open if one.http2.arriving()])
        assert server.do(lambda: len(connection.get_buffer(-1))) > 100_000
        server.do(server.streams[-1].writer.close)
        wire.send(data(1, begun)[HEAD.size + 10 :], headers(3, call()), data(3, message(b"x"), end=True))
        assert wire.answer(3)["grpc-status"] == "0"
    wait_for(lambda: not server.grpc.held)
