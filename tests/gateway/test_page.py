"""The dashboard over HTTP: streams without an end, the page's files, and who may see them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.dashboard.snapshots import status
from tests.gateway.http_wire import LIMITS, Peer, request
from zmq_offload.client.session import Complete, Fail
from zmq_offload.dashboard.files import HEADERS, PATHS
from zmq_offload.dashboard.viewers import MOST
from zmq_offload.dashboard.watch import Watch
from zmq_offload.errors import OffloadError, Unavailable
from zmq_offload.gateway.access.decisions import Access, Listed, Open
from zmq_offload.gateway.http.router import Router
from zmq_offload.gateway.http.server import HttpServer
from zmq_offload.gateway.page import asking, front_routes, page_routes
from zmq_offload.net.credentials import token_entry
from zmq_offload.net.grants import Grant
from zmq_offload.protocol import messages as wire

EVENTS = request("/dashboard/events", method="GET")
TOKENS = Listed(
    {token_entry("all"): Grant("ops"), token_entry("some"): Grant("guest", frozenset({"echo"}))}, certificates=False
)


async def _status() -> Mapping[str, Any]:
    return status(10)


class Page:
    """A server of the dashboard."""

    def __init__(self, access: Access | None = None, *, alone: bool = True) -> None:
        self.watch = Watch(_status)
        router = Router()
        for route in (front_routes if alone else page_routes)(self.watch):
            router.add(*route)
        self.server = HttpServer(router, access or Open(), LIMITS)

    def ask(self, data: bytes) -> Peer:
        peer = Peer(self.server)
        peer.send(data)
        return peer


def in_loop(test: Callable[[], None]) -> Callable[[], None]:
    async def run() -> None:
        test()

    def wrapped() -> None:
        asyncio.run(run())

    wrapped.__name__ = test.__name__
    return wrapped


@in_loop
def test_events_have_no_length_and_end_with_the_connection() -> None:
    page = Page()
    peer = page.ask(EVENTS)
    head, _, body = bytes(peer.transport.written).partition(b"\r\n\r\n")
    assert b"Content-Type: text/event-stream" in head and b"Connection: close" in head
    assert b"Content-Length" not in head and body.startswith(b'event: state\ndata: {"view":{"broker":')
    peer.send(b"GET / HTTP/1.1\r\n")
    page.watch.viewers.tell(b"event: update\ndata: 1\n\n")
    assert peer.transport.written.endswith(b"event: update\ndata: 1\n\n")
    peer.go()
    assert len(page.watch.viewers) == 0
    assert peer.connection.send(b"late") == 0 and not peer.transport.written.endswith(b"late")


@in_loop
def test_a_draining_server_ends_its_streams() -> None:
    page = Page()
    peer = page.ask(EVENTS)
    page.server.drain()
    assert peer.transport.closed
    peer.go()
    assert len(page.watch.viewers) == 0
    assert page.ask(EVENTS).transport.closed


@in_loop
def test_the_head_of_events_may_be_asked_for() -> None:
    page = Page()
    peer = page.ask(request("/dashboard/events", method="HEAD"))
    assert b"text/event-stream" in peer.transport.written and len(page.watch.viewers) == 0


@in_loop
def test_one_viewer_too_many_is_refused() -> None:
    page = Page()
    for _ in range(MOST):
        page.watch.viewers.add(Peer(page.server).connection, b"")
    page.server._most = MOST + 1
    ((code, body),) = page.ask(EVENTS).answers()
    assert code == 503 and b"32 viewers look at the dashboard; try again later" in body


@in_loop
def test_the_page_is_the_front_of_its_own_server() -> None:
    page = Page()
    for path in ("/", *PATHS):
        peer = page.ask(request(path, method="GET"))
        head = bytes(peer.transport.written).partition(b"\r\n\r\n")[0].decode()
        assert head.startswith("HTTP/1.1 200") and all(f"{name}: {value}" in head for name, value in HEADERS)
        peer.go()
    for path in ("/dashboard/../etc/passwd", "/dashboard/%2e%2e/files.py", "/dashboard/page.html"):
        peer = page.ask(request(path, method="GET"))
        assert peer.answers()[0][0] == 404
        peer.go()
    peer = page.ask(request("/dashboard/", method="GET"))
    head = bytes(peer.transport.written).decode()
    assert head.startswith("HTTP/1.1 308 ") and "\r\nLocation: ../dashboard\r\n" in head
    peer.go()


@in_loop
def test_a_gateway_keeps_its_front() -> None:
    assert Page(alone=False).ask(request("/", method="GET")).answers()[0][0] == 404


@in_loop
def test_with_an_access_list_the_events_need_a_token_for_all_models() -> None:
    page = Page(TOKENS)
    assert page.ask(request("/dashboard", method="GET")).answers()[0][0] == 200
    assert page.ask(EVENTS).answers()[0][0] == 401
    some = page.ask(request("/dashboard/events", b"", "Authorization: Bearer some", method="GET"))
    assert some.answers()[0][0] == 403
    some.go()
    peer = page.ask(request("/dashboard/events", b"", "Authorization: Bearer all", method="GET"))
    assert b"event: state" in peer.transport.written


class Calls:
    """Calls that end as told."""

    def __init__(self, *done: Complete | Fail) -> None:
        self.done = list(done)
        self.canceled: list[int] = []

    def query(self, ended: Callable[[Complete | Fail], None], what: str, timeout: float) -> int:
        assert what == "status" and timeout == 2.0
        if self.done:
            ended(self.done.pop(0))
        return 7

    def cancel(self, number: int) -> None:
        self.canceled.append(number)


def _answer(payload: bytes) -> Complete:
    return Complete(7, wire.Answer(b"s" * wire.SESSION_BYTES, 7), (payload,))


def test_a_gateway_asks_its_broker() -> None:
    import msgpack

    calls: Any = Calls(_answer(msgpack.packb({"uptime": 1})), Fail(7, Unavailable("gone")), _answer(b"\xc1"))

    async def main() -> None:
        ask = asking(calls)
        assert await ask() == {"uptime": 1}
        with pytest.raises(Unavailable, match="gone"):
            await ask()
        with pytest.raises(OffloadError):
            await ask()
        waiting = asyncio.ensure_future(ask())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert calls.canceled == [7]

    asyncio.run(main())
