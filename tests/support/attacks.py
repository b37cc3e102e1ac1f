"""Attacks on a port of a gateway: hostile bytes and idle connections, with an honest client beside them."""

from __future__ import annotations

import asyncio
import itertools
import random
import resource
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

import pytest

from tests.support.memory import resident_bytes
from tests.support.processes import Gateway

REQUESTS = 100_000
AT_ONCE = 64
IDLE = 10_000
MEBIBYTE = 1024 * 1024

Honest: TypeAlias = Callable[[], AbstractAsyncContextManager[list[float]]]
"""Traffic of an honest client; the value is how long each request took, in seconds."""


def memory(gateway: Gateway) -> int:
    """The resident memory of the gateway, in bytes."""
    return resident_bytes(gateway.process.popen.pid)


async def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    client = socket.socket()
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
    return client


@asynccontextmanager
async def asking(ask: Callable[[list[float]], Awaitable[None]]) -> AsyncIterator[list[float]]:
    """Run `ask`, which asks without an end and notes its times, and fail if it ended."""
    times: list[float] = []
    task = asyncio.ensure_future(ask(times))
    try:
        yield times
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def report(what: str, gateway: Gateway, before: int, times: list[float]) -> None:
    assert times
    ordered = sorted(times)
    middle, last = ordered[len(ordered) // 2] * 1e3, ordered[int(len(ordered) * 0.99)] * 1e3
    print(
        f"{what}: {before / MEBIBYTE:.1f} -> {memory(gateway) / MEBIBYTE:.1f} MiB resident; "
        f"beside it {len(times)} honest requests, p50 {middle:.2f} ms, p99 {last:.2f} ms"
    )


async def attack(address: str, data: bytes, chance: random.Random) -> None:
    """Send something, and reset the connection, close it, or read until the gateway closes it."""
    loop = asyncio.get_running_loop()
    with await connect(address) as client:
        try:
            await loop.sock_sendall(client, data)
            end = chance.randrange(3)
            if end == 0:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif end == 1:
                client.shutdown(socket.SHUT_WR)
                while await asyncio.wait_for(loop.sock_recv(client, 65536), 30):
                    pass
        except ConnectionError:
            pass  # the gateway was first


async def storm(gateway: Gateway, address: str, hostile: Callable[[random.Random], bytes], honest: Honest) -> None:
    """Many hostile connections: the gateway stays small."""
    numbers = itertools.count()

    async def attacks(seed: int) -> None:
        chance = random.Random(seed)
        await attack(address, hostile(chance), chance)

    async def attacker() -> None:
        while (number := next(numbers)) < REQUESTS:
            await attacks(number)

    for number in range(-2000, 0):  # so that what is cached is there
        await attacks(number)
    before = memory(gateway)
    async with honest() as times:
        await asyncio.gather(*[attacker() for _ in range(AT_ONCE)])
    report(f"{REQUESTS} hostile connections", gateway, before, times)
    assert memory(gateway) - before < 32 * MEBIBYTE


async def crowd(gateway: Gateway, address: str, greeting: bytes, each: int, honest: Honest) -> None:
    """Many idle connections: each takes less than `each` bytes."""
    before = memory(gateway)
    loop = asyncio.get_running_loop()
    idle = [await connect(address) for _ in range(IDLE)]
    if greeting:
        for client in idle:
            await loop.sock_sendall(client, greeting)
    async with honest() as times:
        while len(times) < 1000:
            await asyncio.sleep(0.05)
        report(f"{IDLE} idle connections", gateway, before, times)
    assert memory(gateway) - before < IDLE * each
    for client in idle:
        client.close()


def need_files() -> None:
    """Let this process hold the sockets of a crowd, or skip the test."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < IDLE + 1000:
        pytest.skip(f"the limit of open files is {hard}")


def check_alive(gateway: Gateway) -> None:
    """The gateway runs, and no fault of its own is in its log."""
    assert gateway.process.popen.poll() is None
    assert not [line for line in gateway.process.seen() if "Traceback" in line or "failed" in line]
