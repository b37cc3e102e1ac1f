"""The client of one peer, in a process of its own: `python peer_client.py KIND ARGUMENT...`.

It reads a size in bytes, a time in seconds and a number of callers per line. The callers make round trips for that
time, each one after the other. It prints the time that passed, and the durations of the round trips. Several callers
are tasks of asyncio, with the peer's client for that. It runs in the peer's own environment, so it needs only NumPy and
the client of that peer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

Infer = Any  # of an array; returns one of the same shape


def bare(endpoint: str) -> Infer:
    from tests.benchmarks.bare import BareClient

    client = BareClient(endpoint)
    return lambda x: np.frombuffer(client(x.data.cast("B")), x.dtype)


def fabric(endpoint: str, model: str) -> Infer:
    from zmq_offload import Client

    client = Client(endpoint, timeout=60)

    def infer(x: Any) -> Any:
        name = model.format(x.nbytes)
        (result,) = client.infer(name, {"h": x}).values()
        return result

    return infer


def compiled(endpoint: str, bundles: str) -> Infer:
    """The device model of a split, which calls the region: the cost of `model(x)`."""
    import zmq_offload

    models: dict[int, Any] = {}

    def infer(x: Any) -> Any:
        if x.nbytes not in models:
            models[x.nbytes] = zmq_offload.load(Path(bundles) / str(x.nbytes) / "device", broker=endpoint)
        return models[x.nbytes](x)

    return infer


def tvm_rpc(port: str, libraries: str) -> Infer:
    import tvm
    from tvm import rpc

    remote = rpc.connect("127.0.0.1", int(port))
    device = remote.cpu()
    loaded: dict[int, Any] = {}

    def infer(x: Any) -> Any:
        if x.nbytes not in loaded:
            file = Path(libraries) / f"relu{x.nbytes}.so"
            remote.upload(str(file))
            run = remote.load_module(file.name)["main"]
            loaded[x.nbytes] = run, tvm.runtime.empty(x.shape, "float32", device)
            loaded[x.nbytes] += (tvm.runtime.empty(x.shape, "float32", device),)
        run, there, result = loaded[x.nbytes]
        there.copyfrom(x)
        run(there, result)
        return result.numpy()

    return infer


def triton(protocol: str, url: str) -> Infer:
    if protocol == "grpc":
        import tritonclient.grpc as client_of
    else:
        import tritonclient.http as client_of
    client = client_of.InferenceServerClient(url)

    def infer(x: Any) -> Any:
        given = client_of.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        return client.infer("echo", [given]).as_numpy("y")

    return infer


def mosec(port: str) -> Infer:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", int(port))

    def infer(x: Any) -> Any:
        connection.request("POST", "/inference", x.tobytes())
        return np.frombuffer(connection.getresponse().read(), x.dtype)

    return infer


async def fabric_callers(stack: AsyncExitStack, endpoint: str, model: str) -> Infer:
    from zmq_offload import AsyncClient

    client = await stack.enter_async_context(AsyncClient(endpoint, timeout=60))

    async def infer(x: Any) -> Any:
        name = model.format(x.nbytes)
        (result,) = (await client.infer(name, {"h": x})).values()
        return result

    return infer


async def triton_callers(stack: AsyncExitStack, protocol: str, url: str) -> Infer:
    if protocol == "grpc":
        import tritonclient.grpc.aio as client_of
    else:
        import tritonclient.http.aio as client_of
    # Its HTTP client opens 100 connections at most.
    client = await stack.enter_async_context(client_of.InferenceServerClient(url))

    async def infer(x: Any) -> Any:
        given = client_of.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        return (await client.infer("echo", [given])).as_numpy("y")

    return infer


async def mosec_callers(stack: AsyncExitStack, port: str) -> Infer:
    import aiohttp

    session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))

    async def infer(x: Any) -> Any:
        async with session.post(f"http://127.0.0.1:{port}/inference", data=x.tobytes()) as response:
            return np.frombuffer(await response.read(), x.dtype)

    return infer


KINDS = {f.__name__: f for f in (bare, fabric, compiled, tvm_rpc, triton, mosec)}
CALLERS = {"fabric": fabric_callers, "triton": triton_callers, "mosec": mosec_callers}
"""Kinds that have a client for many calls at a time."""


class One:
    """One caller."""

    def __init__(self, kind: str, arguments: list[str]) -> None:
        self._infer = KINDS[kind](*arguments)

    def run(self, x: Any, seconds: float, callers: int) -> tuple[float, list[float]]:
        assert callers == 1
        infer, clock, times = self._infer, time.perf_counter, []
        # Inputs are positive, so that a ReLU returns them unchanged.
        assert np.array_equal(infer(x), x), "the server returned something else"
        began = clock()
        while not times or clock() < began + seconds:
            start = clock()
            infer(x)
            times.append(clock() - start)
        return clock() - began, times


class Many:
    """Callers of one event loop, which share a client."""

    def __init__(self, kind: str, arguments: list[str]) -> None:
        self._loop, self._stack = asyncio.new_event_loop(), AsyncExitStack()
        self._infer = self._loop.run_until_complete(CALLERS[kind](self._stack, *arguments))

    def run(self, x: Any, seconds: float, callers: int) -> tuple[float, list[float]]:
        return self._loop.run_until_complete(self._run(x, seconds, callers))

    async def _run(self, x: Any, seconds: float, callers: int) -> tuple[float, list[float]]:
        infer, clock = self._infer, time.perf_counter
        times: list[float] = []
        assert np.array_equal(await infer(x), x), "the server returned something else"

        async def call() -> None:
            while clock() < end:
                start = clock()
                await infer(x)
                times.append(clock() - start)

        began = clock()
        end = began + seconds
        await asyncio.gather(*(call() for _ in range(callers)))
        return clock() - began, times


def main() -> None:
    kind, *arguments = sys.argv[1:]
    one, many = One(kind, arguments), None
    print("ready", flush=True)
    for line in sys.stdin:
        size, seconds, callers = json.loads(line)
        x = np.random.default_rng(0).random(size // 4, dtype=np.float32)
        if callers > 1 and many is None:
            many = Many(kind, arguments)
        print(json.dumps((one if many is None or callers == 1 else many).run(x, seconds, callers)), flush=True)


if __name__ == "__main__":
    main()
