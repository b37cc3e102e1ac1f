"""Measures how long small requests take beside large ones: `python -m tests.benchmarks.beside`.

One client sends tensors of 16 MB, one after the other; another sends requests of 1 KB, with a pause after each. Tensors
go over TCP, as between hosts: nothing shares memory. The two turns, with and without the large ones, alternate.
With `--gateway` both are clients of one gateway over HTTP, so that their requests share its connection to the broker.
`--bandwidth` puts an emulated link in front of the broker.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from tests.benchmarks.fabric import until_served
from tests.support.processes import running_broker, running_gateway, running_workers
from zmq_offload import Client
from zmq_offload.testing.link import Link

SMALL = 1024
LARGE = 16 << 20
PAUSE = 0.005

Call = Callable[[], object]


@contextmanager
def by_zeromq(endpoint: str, nbytes: int) -> Iterator[Call]:
    """What sends so many bytes to the model, and waits for them to come back."""
    x = np.zeros(nbytes, np.uint8)
    with Client(endpoint, timeout=60, arena_bytes=0) as client:
        yield lambda: client.infer("echo", {"x": x})


@contextmanager
def by_http(address: str, nbytes: int) -> Iterator[Call]:
    """The same, through a gateway."""
    given = {"name": "x", "datatype": "UINT8", "shape": [nbytes], "parameters": {"binary_data_size": nbytes}}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    body, headers = head + bytes(nbytes), {"Inference-Header-Content-Length": str(len(head))}
    connection = http.client.HTTPConnection(address, timeout=60)

    def call() -> None:
        connection.request("POST", "/v2/models/echo/infer", body, headers)
        answer = connection.getresponse()
        returned = answer.read()
        assert answer.status == 200, returned

    yield call
    connection.close()


def _send_large(gateway: bool, address: str, nbytes: int, go: Any, done: Any) -> None:
    with (by_http if gateway else by_zeromq)(address, nbytes) as call:
        while True:
            go.wait()
            call()
            with done.get_lock():
                done.value += 1


def small(call: Call, seconds: float) -> list[float]:
    """Round trips of small requests, with a pause after each."""
    times = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        times.append(time.perf_counter() - start)
        time.sleep(PAUSE)
    return times


def report(name: str, times: list[float], more: str = "") -> None:
    p50, p90, p99 = (np.quantile(times, q) * 1e3 for q in (0.5, 0.9, 0.99))
    print(f"| {name} | {p50:.2f} ms | {p90:.2f} ms | {p99:.2f} ms | {max(times) * 1e3:.2f} ms | {more}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.beside", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--large", type=int, default=LARGE, metavar="BYTES")
    parser.add_argument("--arena-bytes", default="0")
    parser.add_argument("--bandwidth", default=None, help="such as 500Mbit; with a round trip of 1 ms")
    parser.add_argument("--gateway", action="store_true", help="through one gateway, over HTTP")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with running_broker() as broker, ExitStack() as stack:
        for _ in range(args.workers):
            options = ("--executor", "echo", "--slots", "4", "--arena-bytes", args.arena_bytes)
            stack.enter_context(running_workers(broker.backend, *options))
        with Client(broker.frontend) as client:
            until_served(client, "echo", args.workers)
        address = broker.frontend
        if args.bandwidth:
            address = stack.enter_context(Link(address, bandwidth=args.bandwidth, rtt="1ms")).endpoint
        if args.gateway:
            own = ("--arena-bytes", args.arena_bytes)
            address = stack.enter_context(running_gateway(address, options=own)).http
        go, done = context.Event(), context.Value("i", 0)
        process = context.Process(target=_send_large, args=(args.gateway, address, args.large, go, done), daemon=True)
        process.start()
        stack.callback(process.terminate)
        with (by_http if args.gateway else by_zeromq)(address, SMALL) as call:
            alone: list[float] = []
            beside: list[float] = []
            served, rounds = 0, 4
            go.set()
            while not done.value:
                time.sleep(0.01)
            for _ in range(rounds):
                go.clear()
                time.sleep(0.3)
                alone += small(call, args.seconds / rounds / 2)
                go.set()
                before = done.value
                beside += small(call, args.seconds / rounds / 2)
                served += done.value - before
        print("| small requests | p50 | p90 | p99 | longest |\n|---|---|---|---|---|")
        report("alone", alone)
        report("beside large ones", beside, f"{served / args.seconds * 2:.1f} large ones a second")


if __name__ == "__main__":
    main()
