"""HTTP connections, without sockets: requests, responses, limits, time."""

import asyncio
import functools
import gzip
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from tests.gateway.http_wire import LIMITS, Peer, Service, chunked, request, turns
from zmq_offload.gateway.access.decisions import Listed, token_entry
from zmq_offload.gateway.http.messages import Compression, Response
from zmq_offload.net.grants import Grant


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop."""

    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return run


@in_loop
async def test_a_request_is_answered() -> None:
    service = Service()
    peer = service.peer()
    peer.send(request("/a?b=c", b"body", "X-Tag: 1"))
    (got,) = service.requests
    assert (got.method, got.path, got.query, got.headers["x-tag"], got.body) == ("POST", "/a", "b=c", "1", b"body")
    assert peer.answers() == [(200, b"body")]
    peer.send(request("/", b"again"))
    assert peer.answers() == [(200, b"body"), (200, b"again")]


@in_loop
async def test_a_large_body_is_received_into_its_own_memory() -> None:
    service = Service()
    peer = service.peer()
    body = bytes(range(256)) * 700
    data = request("/", body)
    peer.send(data[:70_000])
    own = peer.connection.get_buffer(65536)
    assert len(own) == len(data) - 70_000
    assert service.server.held == len(body) - len(own)
    peer.send(data[70_000:])
    assert peer.answers() == [(200, body)]
    assert service.requests[0].body.obj is own.obj  # type: ignore[union-attr]
    assert service.server.held == 0
    peer.send(request("/", b"again"))
    assert peer.answers()[1] == (200, b"again")


@in_loop
async def test_a_body_comes_in_chunks() -> None:
    service = Service()
    peer = service.peer()
    data = chunked("/", b"a" * 70_000, b"\r\n\r\n", b"b") + request("/", b"next")
    peer.send(data)
    assert peer.answers() == [(200, b"a" * 70_000 + b"\r\n\r\nb"), (200, b"next")]


@in_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    service = Service()
    service.hold = True
    peer = service.peer()
    peer.send(request("/1", b"1") + request("/2", b"2")[:30])
    peer.send(request("/2", b"2")[30:])
    assert [got.path for got in service.requests] == ["/1"]
    service.release()
    assert [got.path for got in service.requests] == ["/1", "/2"]
    service.release()
    assert peer.answers() == [(200, b"1"), (200, b"2")]


@in_loop
async def test_many_pipelined_requests_leave_others_their_turn() -> None:
    service = Service()
    peer = service.peer()
    peer.send(request("/", b"x") * 100)
    assert 0 < len(service.requests) < 50
    await turns()
    assert peer.answers() == [(200, b"x")] * 100


@in_loop
async def test_a_client_that_sends_ahead_is_not_read() -> None:
    service = Service()
    service.hold = True
    peer = service.peer()
    peer.send(request("/first"))
    peer.send(request("/", b"x" * 30_000) * 20)
    assert peer.transport.paused
    service.hold = False
    service.release()
    await turns()
    assert not peer.transport.paused
    assert len(service.requests) > 2


@in_loop
async def test_the_next_request_waits_until_the_response_is_read() -> None:
    service = Service()
    peer = service.peer()
    peer.connection.pause_writing()
    peer.send(request("/1", b"1"))
    peer.send(request("/2", b"2"))
    assert [got.path for got in service.requests] == ["/1"]
    peer.connection.resume_writing()
    assert [got.path for got in service.requests] == ["/1", "/2"]


@in_loop
async def test_a_client_that_does_not_read_is_disconnected() -> None:
    service = Service()
    peer = service.peer()
    peer.connection.pause_writing()
    peer.transport.unsent = 100_000
    peer.send(request())
    for _ in range(3):
        peer.transport.unsent -= 20_000
        service.wait(LIMITS.receive)
    assert not peer.transport.aborted
    peer.transport.unsent -= 1000
    service.wait(LIMITS.receive)
    assert peer.transport.aborted


@in_loop
async def test_answers_that_are_not_read_count_as_held() -> None:
    """Each client may be slow, but all of them together must not fill the memory with answers."""
    service = Service()
    service.respond = lambda request: Response(200, [bytes(200_000)])
    slow = [service.peer() for _ in range(2)]
    for peer in slow:
        peer.connection.pause_writing()
        peer.transport.unsent = 200_000
        peer.send(request())
    assert service.server.held == 400_000
    other = service.peer()
    other.send(request())
    ((status, body),) = other.answers()
    assert status == 429 and b"500000 bytes of requests and unread answers; try again later" in body
    slow[0].connection.resume_writing()
    slow[1].go()
    assert service.server.held == 0
    other.send(request())
    assert [status for status, _ in other.answers()] == [429, 200]


@pytest.mark.parametrize("end", ["Connection: close", "Connection: Close, X"])
@in_loop
async def test_a_connection_closes_if_the_client_wants_it(end: str) -> None:
    service = Service()
    peer = service.peer()
    peer.send(request("/", b"x", end) + request("/ignored"))
    assert peer.answers() == [(200, b"x")]
    assert b"\r\nConnection: close\r\n" in peer.transport.written
    assert peer.transport.closed
    assert len(service.requests) == 1


@in_loop
async def test_http_1_0_is_kept_alive_only_if_it_asks() -> None:
    service = Service()
    peer = service.peer()
    peer.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"\r\nConnection: keep-alive\r\n" in peer.transport.written
    assert peer.reading
    peer.send(b"GET / HTTP/1.0\r\n\r\n")
    assert peer.transport.closed


@in_loop
async def test_a_head_request_gets_no_body() -> None:
    service = Service()
    service.respond = lambda request: Response(200, [b"12345"])
    peer = service.peer()
    peer.send(request(method="HEAD") + request(method="GET"))
    assert b"Content-Length: 5\r\n\r\nHTTP/1.1" in peer.transport.written
    assert peer.answers("HEAD", "GET") == [(200, b""), (200, b"12345")]


@in_loop
async def test_a_client_may_ask_before_it_sends_a_body() -> None:
    service = Service()
    peer = service.peer()
    data = request("/", b"body", "Expect: 100-continue")
    peer.send(data[:-4])
    assert peer.transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.send(data[-4:])
    assert peer.answers() == [(200, b"body")]
    refused = service.peer()
    refused.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\nExpect: 100-continue\r\n\r\n")
    assert [status for status, _ in refused.answers()] == [413]


@in_loop
async def test_a_large_response_is_not_joined() -> None:
    service = Service()
    parts = [b"a" * 60_000, memoryview(bytes(80_000)).cast("f")]
    service.respond = lambda request: Response(200, parts)
    peer = service.peer()
    peer.send(request())
    assert peer.answers() == [(200, b"a" * 60_000 + bytes(80_000))]


@in_loop
async def test_a_lost_client_takes_its_request_back() -> None:
    service = Service()
    service.hold = True
    peer = service.peer()
    peer.send(request())
    peer.go()
    assert service.canceled == 1
    assert service.server.connections == 0
    service.release()
    assert peer.transport.written == b""


@in_loop
async def test_an_answered_request_is_not_taken_back() -> None:
    service = Service()
    service.hold = True
    peer = service.peer()
    peer.send(request())
    service.release()
    peer.go()
    assert service.canceled == 0


@in_loop
async def test_a_second_answer_is_ignored() -> None:
    service = Service()
    service.hold = True
    peer = service.peer()
    peer.send(request("/", b"1"))
    ((_, respond),) = service._waiting
    respond(Response(200, [b"one"]))
    respond(Response(200, [b"two"]))
    peer.send(request("/", b"2"))
    respond(Response(200, [b"three"]))
    assert peer.answers() == [(200, b"one")]


@in_loop
async def test_a_handler_that_fails_is_answered_for(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()

    def fail(request: object) -> Response:
        raise ZeroDivisionError

    service.respond = fail
    peer = service.peer()
    with caplog.at_level(logging.ERROR):
        peer.send(request("/x"))
    assert peer.answers() == [(500, b'{"error": "the gateway failed; its log has details"}')]
    assert "the request POST /x failed" in caplog.text
    caplog.clear()


@in_loop
async def test_a_malformed_request_is_refused_and_the_client_has_time_to_see_it() -> None:
    service = Service()
    peer = service.peer()
    peer.send(request("/1", b"1") + b"nonsense\r\n\r\n")
    assert peer.answers() == [
        (200, b"1"),
        (400, b'{"error": "the request is malformed: invalid method encountered"}'),
    ]
    assert peer.transport.ended and not peer.transport.closed
    peer.send(request("/ignored") * 10)
    assert len(service.requests) == 1
    service.wait(6)
    assert peer.transport.aborted


@in_loop
async def test_a_body_is_refused_before_it_is_held() -> None:
    service = Service()
    peer = service.peer()
    peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200001\r\n\r\n" + bytes(60_000))
    assert peer.answers() == [(413, b'{"error": "the body has 200001 bytes; send at most 200000"}')]
    assert len(peer.connection.get_buffer(-1)) == 65536
    many = service.peer()
    many.send(chunked("/", *[b"x" * 50_000] * 10))
    assert [status for status, _ in many.answers()] == [413]
    assert service.server.held == 0


@in_loop
async def test_all_bodies_together_are_limited() -> None:
    service = Service()
    service.hold = True
    peers = [service.peer() for _ in range(3)]
    for peer in peers:
        peer.send(request("/", bytes(190_000)))
    assert [[status for status, _ in peer.answers()] for peer in peers] == [[], [], [429]]
    assert b"\r\nRetry-After: 1\r\n" in peers[2].transport.written
    service.release()
    assert service.server.held == 0
    peers[0].send(request("/", bytes(190_000)))
    assert len(service.requests) == 3


@in_loop
async def test_connections_are_limited() -> None:
    service = Service()
    peers = [service.peer() for _ in range(LIMITS.connections + 1)]
    assert [peer.transport.closed for peer in peers] == [False, False, False, True]
    assert peers[-1].answers() == [(503, b'{"error": "the gateway has 3 connections; try again later"}')]
    for peer in peers[-2:]:
        peer.go()
    assert service.peer().reading


@in_loop
async def test_an_idle_connection_is_closed() -> None:
    service = Service()
    peer = service.peer()
    service.wait(LIMITS.idle - 1)
    peer.send(request())
    service.wait(LIMITS.idle - 1)
    assert peer.reading
    service.wait(2)
    assert peer.transport.closed
    assert peer.answers() == [(200, b"")]
    service.wait(LIMITS.receive)
    assert peer.transport.aborted


@in_loop
async def test_a_slow_head_is_refused() -> None:
    service = Service()
    peer = service.peer()
    for byte in request()[:9]:
        peer.send(bytes([byte]))
        service.wait(1)
    assert peer.answers() == []
    service.wait(2)
    assert peer.answers() == [(408, b'{"error": "the request comes too slowly; send it faster"}')]


@pytest.mark.parametrize("data", [request("/", bytes(100_000)), chunked("/", bytes(100_000))])
@in_loop
async def test_a_slow_body_is_refused(data: bytes) -> None:
    service = Service()
    peer = service.peer()
    peer.send(data[:80_000])
    service.wait(LIMITS.receive)
    peer.send(data[80_000:91_000])
    service.wait(LIMITS.receive)
    assert peer.answers() == []
    peer.send(data[91_000:91_500])
    service.wait(LIMITS.receive)
    assert [status for status, _ in peer.answers()] == [408]


@in_loop
async def test_a_handler_has_time() -> None:
    service = Service()
    service.hold = True
    peer = service.peer()
    peer.send(request("/", b"x"))
    service.wait(10 * LIMITS.idle)
    service.release()
    assert peer.answers() == [(200, b"x")]
    assert peer.reading


@in_loop
async def test_draining_closes_each_connection_after_its_answer() -> None:
    service = Service()
    idle, busy, late = service.peer(), service.peer(), service.peer()
    service.hold = True
    busy.send(request("/busy", b"1"))
    service.server.drain()
    late.send(request("/late", b"2"))
    service.wait(2)
    assert [peer.transport.closed for peer in (idle, busy, late)] == [True, False, False]
    service.release()
    assert busy.transport.closed and late.transport.closed
    assert late.answers() == [(200, b"2")]
    assert b"\r\nConnection: close\r\n" in late.transport.written
    idle.go()
    newcomer = service.peer()
    service.wait(2)
    assert newcomer.transport.closed
    service.server.abort()
    assert busy.transport.aborted


@in_loop
async def test_who_has_no_credential_is_refused_before_the_body() -> None:
    service = Service(access=Listed({token_entry("t"): Grant("t")}, certificates=False))
    peer = service.peer()
    data = request("/", bytes(100_000))
    peer.send(data[:200])
    assert [status for status, _ in peer.answers()] == [401]
    assert b"\r\nWWW-Authenticate: Bearer" in peer.transport.written
    known = service.peer()
    known.send(request("/", b"x", "Authorization: Bearer t"))
    assert known.answers() == [(200, b"x")]
    assert service.requests[0].grant.name == "t"


@in_loop
async def test_a_browser_asks_without_a_credential_and_may_use_nothing() -> None:
    service = Service(access=Listed({token_entry("t"): Grant("t")}, certificates=False))
    peer = service.peer()
    peer.send(b"OPTIONS / HTTP/1.1\r\nHost: x\r\nOrigin: https://page.example\r\n\r\n")
    assert [status for status, _ in peer.answers()] == [200]
    assert service.requests[0].grant.models == frozenset()


@in_loop
async def test_who_has_no_credential_cannot_send_much() -> None:
    access = Listed({token_entry("t"): Grant("t")}, certificates=False)
    bomb = gzip.compress(bytes(4097), mtime=0)
    for head in (b"OPTIONS / HTTP/1.1\r\nHost: x\r\n", b"POST /v2/health/live HTTP/1.1\r\nHost: x\r\n"):
        for length, status in (
            (b"Content-Length: 4096\r\n\r\n" + bytes(4096), 200),
            (b"Content-Length: 4097\r\n\r\n", 413),
            (b"Transfer-Encoding: chunked\r\n\r\n", 413),
            (b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(bomb), bomb), 413),
        ):
            peer = Service(access=access).peer()
            peer.send(head + length)
            assert [status for status, _ in peer.answers()] == [status]
    known = Service(access=access).peer()
    known.send(request("/v2/health/live", bytes(5000), "Authorization: Bearer t"))
    assert known.answers() == [(200, bytes(5000))]


async def answered(peer: Peer) -> list[tuple[int, bytes]]:
    await turns(200)
    return peer.answers()


@pytest.mark.parametrize("size", [0, 10, 190_000])
@in_loop
async def test_a_compressed_body_is_decompressed(size: int) -> None:
    service = Service()
    peer = service.peer()
    peer.send(request("/", gzip.compress(bytes(size)), "Content-Encoding: gzip") + request("/", b"next"))
    assert await answered(peer) == [(200, bytes(size)), (200, b"next")]
    assert service.server.held == 0


@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [(b"junk", "gzip", 400), (b"junk", "br", 415), (gzip.compress(bytes(10_000_000)), "gzip", 413)],
)
@in_loop
async def test_what_cannot_be_decompressed_is_refused(body: bytes, coding: str, status: int) -> None:
    service = Service()
    peer = service.peer()
    peer.send(request("/", body, f"Content-Encoding: {coding}"))
    assert [status for status, _ in await answered(peer)] == [status]
    assert service.requests == []
    assert service.server.held == 0


@in_loop
async def test_a_bomb_is_stopped_at_the_limit() -> None:
    service = Service(replace(LIMITS, body_bytes=1_000_000, held_bytes=1_000_000))
    bombs = [service.peer() for _ in range(2)]
    for peer, size in zip(bombs, (10_000_000, 1_000_000), strict=True):
        peer.send(request("/", gzip.compress(bytes(size)), "Content-Encoding: gzip"))
    bombs[0].send(bytes(300_000))
    assert bombs[0].transport.paused
    assert service.server.held > 0
    assert [[status for status, _ in await answered(peer)] for peer in bombs] == [[413], [429]]
    assert bombs[0].reading
    assert service.requests == []
    assert service.server.held == 0


@in_loop
async def test_a_response_is_compressed_if_client_and_handler_want_it() -> None:
    service = Service()
    kinds = {"/yes": Compression.ACCEPTING, "/asked": Compression.ASKING, "/no": Compression.NONE}
    service.respond = lambda request: Response(200, [request.body], [], kinds[request.path])
    peer = service.peer()
    body = b"a" * 150_000
    for path, accept in [("/yes", "gzip"), ("/yes", "identity"), ("/no", "gzip"), ("/asked", "gzip, deflate")]:
        peer.send(request(path, body, f"Accept-Encoding: {accept}"))
        await turns()
    peer.send(request("/yes", b"small", "Accept-Encoding: gzip"))
    (_, first), *rest = await answered(peer)
    assert len(first) < 10_000 and gzip.decompress(first) == body
    assert rest == [(200, body), (200, body), (200, body), (200, b"small")]
    assert peer.transport.written.count(b"\r\nContent-Encoding: gzip\r\nVary: Accept-Encoding\r\n") == 1


@in_loop
async def test_coding_stops_when_the_client_is_lost() -> None:
    service = Service()
    service.respond = lambda request: Response(200, [request.body], [], Compression.ACCEPTING)
    sender, reader = service.peer(), service.peer()
    large = LIMITS.body_bytes * b"x"
    sender.send(request("/", gzip.compress(bytes(190_000), 0), "Content-Encoding: gzip"))
    reader.send(request("/reader", large, "Accept-Encoding: gzip"))
    sender.go()
    reader.go()
    await turns(200)
    assert [got.path for got in service.requests] == ["/reader"]
    assert sender.transport.written == reader.transport.written == b""
