"""HTTP clients that mean harm, or that are broken: each of them gets an answer or is disconnected."""

import asyncio
import gzip
import re

from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.http_wire import LIMITS, Peer, Service, chunked, request, turns
from zmq_offload.gateway.http.messages import Request, Response

_BODIES = st.one_of(
    st.binary(max_size=50),
    st.sampled_from([b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 70_000, b"0\r\n\r\n"]),
)

_REQUESTS = st.one_of(
    st.builds(lambda body: (request("/length", body), body), _BODIES),
    st.builds(lambda parts: (chunked("/chunks", *filter(None, parts)), b"".join(parts)), st.lists(_BODIES, max_size=2)),
    st.builds(
        lambda body: (request("/gzip", gzip.compress(body, 1), "Content-Encoding: gzip"), body), _BODIES.filter(bool)
    ),
    st.just((request("/empty", b"", method="GET"), b"")),
    st.just((b"\r\n" + request("/after", b"x"), b"x")),
)

_FRAGMENTS = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        b"\xff",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
        b"ffffffffffffffff\r\n",
        b"X" * 9000,
        b"A: b\r\n" * 101,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]
)

_MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["cut", "insert", "replace", "repeat"]), st.floats(0, 1), st.integers(1, 60), _FRAGMENTS),
    max_size=4,
)


def mutated(data: bytes, mutations: list[tuple[str, float, int, bytes]]) -> bytes:
    for kind, place, size, fragment in mutations:
        at = int(place * min(len(data), 1000))
        if kind == "cut":
            data = data[:at] + data[at + size :]
        elif kind == "insert":
            data = data[:at] + fragment + data[at:]
        elif kind == "replace":
            data = data[:at] + fragment + data[at + len(fragment) :]
        else:
            data = data[: at + size] + data[at:]
    return data


async def send_in_pieces(peer: Peer, data: bytes, cuts: list[int]) -> None:
    start = 0
    for cut in [*sorted(cuts), len(data)]:
        end = min(cut, len(data))
        peer.send(data[start:end])
        start = max(start, end)
        await turns(2)


_CUTS = st.lists(st.integers(0, 400), max_size=8)


@given(requests=st.lists(_REQUESTS, max_size=4), cuts=_CUTS)
def test_the_answers_do_not_depend_on_how_the_bytes_arrive(
    requests: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    async def talk() -> None:
        service = Service()
        peer = service.peer()
        await send_in_pieces(peer, b"".join([data for data, _ in requests]), cuts)
        assert peer.answers() == [(200, body) for _, body in requests]
        assert peer.reading
        assert service.server.held == 0

    asyncio.run(talk())


@given(requests=st.lists(_REQUESTS, min_size=1, max_size=3), mutations=_MUTATIONS, cuts=_CUTS)
def test_a_broken_request_ends_in_an_answer_or_a_close(
    requests: list[tuple[bytes, bytes]], mutations: list[tuple[str, float, int, bytes]], cuts: list[int]
) -> None:
    async def talk() -> None:
        service = Service()
        failed: list[Request] = []

        def respond(request: Request) -> Response:
            failed.append(request)
            return Response(200, [request.body])

        service.respond = respond
        peer = service.peer()
        data = mutated(b"".join([data for data, _ in requests]), mutations)
        await send_in_pieces(peer, data, cuts)
        service.wait(LIMITS.idle + 3 * LIMITS.receive)
        assert not peer.reading
        statuses = re.findall(rb"HTTP/1\.1 (\d+) ", peer.transport.written)
        assert len([status for status in statuses if status == b"200"]) == len(failed)
        peer.go()
        assert (service.server.held, service.server.connections) == (0, 0)

    asyncio.run(talk())


@given(data=st.binary(max_size=300), cuts=_CUTS)
def test_random_bytes_end_in_an_answer_or_a_close(data: bytes, cuts: list[int]) -> None:
    async def talk() -> None:
        service = Service()
        peer = service.peer()
        await send_in_pieces(peer, data, cuts)
        service.wait(LIMITS.idle + 3 * LIMITS.receive)
        assert not peer.reading
        assert service.requests == []

    asyncio.run(talk())
