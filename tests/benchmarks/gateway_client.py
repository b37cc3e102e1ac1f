"""One client of the gateway's benchmark: `python -m tests.benchmarks.gateway_client KIND HOST:PORT`.

It reads, a line each, a size in bytes, a number of callers and a time in seconds, lets so many callers make round trips
one after the other for that time, and prints their durations. One caller is the synchronous client, several are tasks
of the asynchronous one.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import time
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import numpy as np

MODEL = "row"
clock = time.perf_counter


def _given(module: ModuleType, x: Any) -> list[Any]:
    given = module.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    return [given]


def alone(kind: str, url: str, x: Any) -> Callable[[], Any]:
    """A call of the synchronous client, which returns what came back."""
    if kind == "mosec":
        connection = http.client.HTTPConnection(url)

        def post() -> Any:
            connection.request("POST", "/inference", x.tobytes())
            return np.frombuffer(connection.getresponse().read(), x.dtype).reshape(x.shape)

        return post
    module: Any
    if kind == "grpc":
        import tritonclient.grpc as module
    else:
        import tritonclient.http as module
    client = module.InferenceServerClient(url)
    return lambda: client.infer(MODEL, _given(module, x)).as_numpy("y")


async def together(kind: str, url: str, x: Any, callers: int, seconds: float) -> list[float]:
    """The durations of the calls of several callers."""
    call: Callable[[], Awaitable[Any]]
    if kind == "mosec":
        import aiohttp

        client: Any = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=callers))

        async def call() -> Any:
            async with client.post(f"http://{url}/inference", data=x.tobytes()) as response:
                return np.frombuffer(await response.read(), x.dtype).reshape(x.shape)

    else:
        module: Any
        if kind == "grpc":
            import tritonclient.grpc.aio as module

            client = module.InferenceServerClient(url)
        else:
            import tritonclient.http.aio as module

            client = module.InferenceServerClient(url, conn_limit=callers)

        async def call() -> Any:
            return (await client.infer(MODEL, _given(module, x))).as_numpy("y")

    times: list[float] = []
    assert np.array_equal(await call(), x), "the server returned something else"
    end = clock() + seconds

    async def caller() -> None:
        while clock() < end:
            start = clock()
            await call()
            times.append(clock() - start)

    await asyncio.gather(*(caller() for _ in range(callers)))
    await client.close()
    return times


def main() -> None:
    kind, url = sys.argv[1:]
    print("ready", flush=True)
    calls: dict[int, Callable[[], Any]] = {}
    for line in sys.stdin:
        size, callers, seconds = json.loads(line)
        x = np.random.default_rng(0).random((1, size // 4), dtype=np.float32)
        began = clock()
        if callers > 1:
            times = asyncio.run(together(kind, url, x, callers, seconds))
        else:
            call = calls.get(size) or calls.setdefault(size, alone(kind, url, x))
            assert np.array_equal(call(), x), "the server returned something else"
            times, began = [], clock()
            while not times or clock() < began + seconds:
                start = clock()
                call()
                times.append(clock() - start)
        print(json.dumps([clock() - began, times]), flush=True)


if __name__ == "__main__":
    main()
