"""HTTP over real sockets, with and without TLS: what the kernel and the event loop decide."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

import pytest
import uvloop

from tests.gateway.http_wire import LIMITS, Service, request
from tests.support.certificates import Authority

LIMITS = replace(LIMITS, body_bytes=10_000_000, held_bytes=50_000_000)
BODY = bytes(range(256)) * 20_000


class Contexts(NamedTuple):
    server: ssl.SSLContext | None
    client: ssl.SSLContext | None


@pytest.fixture(name="tls", scope="module", params=[False, True], ids=["plain", "tls"])
def _tls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    if not request.param:
        return Contexts(None, None)
    authority = Authority(tmp_path_factory.mktemp("tls"))
    pair = authority.make("server")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(pair.certificate, pair.key)
    return Contexts(server, ssl.create_default_context(cafile=authority.file))


class Client(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        return int(head.split()[1]), await self.reader.readexactly(length)


@asynccontextmanager
async def connected(service: Service, tls: Contexts) -> AsyncIterator[Client]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(service.server.protocol, "127.0.0.1", 0, ssl=tls.server)
    try:
        port = server.sockets[0].getsockname()[1]
        name = "localhost" if tls.client else None
        client = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=tls.client, server_hostname=name))
        yield client
        client.writer.transport.abort()
    finally:
        server.close()
        service.server.abort()
        await until(lambda: not service.server.connections)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come true within 10 s")


def test_large_bodies_and_responses(tls: Contexts) -> None:
    async def talk() -> None:
        service = Service(LIMITS)
        async with connected(service, tls) as client:
            for _ in range(2):
                client.writer.write(request("/", BODY) + request("/", b"small"))
                assert await client.answer() == (200, BODY)
                assert await client.answer() == (200, b"small")
        assert service.server.held == 0

    uvloop.run(talk())


def test_a_client_that_sends_a_refused_body_to_its_end_sees_why(tls: Contexts) -> None:
    """Without the time to linger, the connection would be reset while the client sends."""

    async def talk() -> None:
        service = Service(replace(LIMITS, body_bytes=1000))
        async with connected(service, tls) as client:
            client.writer.write(request("/", BODY))
            await client.writer.drain()
            assert await client.answer() == (413, b'{"error": "the body has 5120000 bytes; send at most 1000"}')
            assert service.requests == []

    uvloop.run(talk())


def test_a_lost_client_takes_its_request_back(tls: Contexts) -> None:
    async def talk() -> None:
        service = Service(LIMITS)
        service.hold = True
        async with connected(service, tls) as client:
            client.writer.write(request("/", BODY))
            await until(lambda: service.requests)
            client.writer.close()
            await until(lambda: service.canceled)
            assert service.server.held == 0

    uvloop.run(talk())


def test_draining_answers_what_is_under_way(tls: Contexts) -> None:
    async def talk() -> None:
        service = Service(LIMITS)
        service.hold = True
        async with connected(service, tls) as client:
            client.writer.write(request("/", BODY))
            await until(lambda: service.requests)
            service.server.drain()
            service.release()
            assert await client.answer() == (200, BODY)
            assert await client.reader.read() == b""
            await until(lambda: not service.server.connections)

    uvloop.run(talk())
