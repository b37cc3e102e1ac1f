"""A gateway whose HTTP port is attacked, with real processes: it stays up and small, and serves honest clients."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
import uvloop

from tests.support.attacks import MEBIBYTE, asking, check_alive, connect, crowd, memory, need_files, report, storm
from tests.support.processes import ROOT, Gateway, running_broker, running_gateway, running_workers, wait_for_workers

pytestmark = pytest.mark.chaos

RECEIVE = 3

PATHS = (
    "/v2",
    "/v2/health/ready",
    "/v2/models/echo",
    "/v2/models/echo/infer",
    "/v1/models/echo:predict",
    "/v2/models/%ff",
)
INFER = json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2.5]}]}).encode()
TOKENS = (
    b"\r\n",
    b"\0",
    b"\xff\xfe",
    b"Content-Length: 5\r\n",
    b"Content-Length: 9999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Inference-Header-Content-Length: 20\r\n",
    b"Expect: 100-continue\r\n",
    b"A: b\r\n" * 101,
    b"[" * 2000,
    b'{"inputs":',
    b"1e999",
    b"-1",
)


@pytest.fixture(name="gateway", scope="module")
def _gateway() -> Iterator[Gateway]:
    with running_broker() as fabric, running_workers(fabric.backend, "--executor", "echo", "--processes", "1"):
        wait_for_workers(fabric.frontend, 1)
        options = ["--receive-timeout", str(RECEIVE), "--model-control", "--system-shared-memory"]
        # A port by itself has all files of the process: ports share them.
        with running_gateway(fabric.frontend, options=[*options, "--grpc", "none"]) as gateway:
            yield gateway


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def honest_traffic(gateway: Gateway) -> AbstractAsyncContextManager[list[float]]:
    """A client that runs a model again and again."""

    async def ask(times: list[float]) -> None:
        loop = asyncio.get_running_loop()
        with await connect(gateway.http) as client:
            while True:
                start = time.perf_counter()
                await loop.sock_sendall(client, post("/v2/models/echo/infer", INFER))
                answer = b""
                while not answer.endswith(b"]}]}"):
                    data = await loop.sock_recv(client, 65536)
                    assert data, f"an honest client was disconnected after {answer!r}"
                    answer += data
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b'"data":[1.5,2.5]' in answer
                times.append(time.perf_counter() - start)
                await asyncio.sleep(0.002)

    return asking(ask)


def hostile(chance: random.Random) -> bytes:
    """Random bytes, half a request, a mutated one, or a whole one with a senseless body."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(300))
    path = chance.choice(PATHS)
    request = post(path, INFER) if chance.random() < 0.7 else f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    if kind == 1:
        return request[: chance.randrange(len(request))]
    if kind == 2:
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(request))
            request = request[:at] + chance.choice(TOKENS) + request[at + chance.randrange(20) :]
        return request
    body = INFER
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(body))
        body = body[:at] + chance.choice(TOKENS) + body[at + chance.randrange(20) :]
    return post(path, body)


def test_random_and_half_requests(gateway: Gateway) -> None:
    uvloop.run(storm(gateway, gateway.http, hostile, partial(honest_traffic, gateway)))
    check_alive(gateway)


def test_slow_clients(gateway: Gateway) -> None:
    """Each sends a byte now and then, of a head or of a body, or does not read its response."""

    async def slow(start: bytes, rest: bytes) -> None:
        loop = asyncio.get_running_loop()
        with await connect(gateway.http) as client:
            try:
                await loop.sock_sendall(client, start)
                for byte in rest:
                    await loop.sock_sendall(client, bytes([byte]))
                    await asyncio.sleep(0.5)
                pytest.fail("a slow client was served to its end")
            except ConnectionError:
                pass

    async def deaf() -> None:
        loop = asyncio.get_running_loop()
        body = json.dumps(
            {"inputs": [{"name": "x", "shape": [1_000_000], "datatype": "UINT8", "data": [1] * 1_000_000}]}
        )
        with await connect(gateway.http) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            try:
                for _ in range(100):
                    await loop.sock_sendall(client, post("/v2/models/echo/infer", body.encode()))
                pytest.fail("a client that does not read was served to its end")
            except ConnectionError:
                pass

    async def run() -> None:
        before = memory(gateway)
        head = b"GET /v2 HTTP/1.1\r\nHost: ", b"x" * 1000
        body = b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", bytes(1000)
        async with honest_traffic(gateway) as times:
            clients = [
                *[slow(*head) for _ in range(300)],
                *[slow(*body) for _ in range(300)],
                *[deaf() for _ in range(4)],
            ]
            await asyncio.wait_for(asyncio.gather(*clients), 60)
        report("600 clients that send slowly, 4 that do not read", gateway, before, times)
        assert memory(gateway) - before < 128 * MEBIBYTE

    uvloop.run(run())


def test_idle_connections(gateway: Gateway) -> None:
    need_files()
    uvloop.run(crowd(gateway, gateway.http, b"", 8192, partial(honest_traffic, gateway)))


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_all_paths_with_bodies_that_are_right_or_wrong(gateway: Gateway, tmp_path: Path) -> None:
    """Bodies that keep to tests/gateway/openapi.yaml, or break it in one place: all answers keep to it.

    The file cannot say all that is right, such as that data has to fit a shape, or that parameters which nothing uses
    may be of any type. TensorFlow Serving answers 400, not 405, to a wrong method.
    """
    without = "positive_data_acceptance,negative_data_rejection,unsupported_method"
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(ROOT / "tests/gateway/openapi.yaml")),
            *("--url", gateway.url, "--phases", "coverage,fuzzing", "--max-examples", "100", "--no-shrink"),
            *("--exclude-checks", without, "--seed", "1", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    print(next(line for line in ended.stdout.splitlines() if "generated" in line).strip())
    assert gateway.process.popen.poll() is None
