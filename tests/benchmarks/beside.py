"""Measures how long small requests take beside large ones: `python -m tests.benchmarks.beside`.

One client sends tensors of 16 MB, one after the other; another sends requests of 1 KB, with a pause after each. Tensors
go over TCP, as between hosts: nothing shares memory. The two turns, with and without the large ones, alternate.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from tests.benchmarks.fabric import until_served
from tests.support.processes import running_broker, running_workers
from zmq_offload import Client

LARGE = 16 << 20
PAUSE = 0.005


def _send_large(endpoint: str, nbytes: int, go: Any, done: Any) -> None:
    large = np.zeros(nbytes, np.uint8)
    with Client(endpoint, timeout=60, arena_bytes=0) as client:
        while True:
            go.wait()
            client.infer("echo", {"x": large})
            with done.get_lock():
                done.value += 1


def small(client: Client, seconds: float) -> list[float]:
    """Round trips of small requests, with a pause after each."""
    x = np.zeros(256, np.float32)
    times = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        client.infer("echo", {"x": x})
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
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with running_broker() as broker, ExitStack() as stack:
        for _ in range(args.workers):
            options = ("--executor", "echo", "--slots", "4", "--arena-bytes", args.arena_bytes)
            stack.enter_context(running_workers(broker.backend, *options))
        go, done = context.Event(), context.Value("i", 0)
        process = context.Process(target=_send_large, args=(broker.frontend, args.large, go, done), daemon=True)
        process.start()
        stack.callback(process.terminate)
        with Client(broker.frontend) as client:
            until_served(client, "echo", args.workers)
            alone: list[float] = []
            beside: list[float] = []
            served, rounds = 0, 4
            go.set()
            while not done.value:
                time.sleep(0.01)
            for _ in range(rounds):
                go.clear()
                time.sleep(0.3)
                alone += small(client, args.seconds / rounds / 2)
                go.set()
                before = done.value
                beside += small(client, args.seconds / rounds / 2)
                served += done.value - before
        print("| small requests | p50 | p90 | p99 | longest |\n|---|---|---|---|---|")
        report("alone", alone)
        report("beside large ones", beside, f"{served / args.seconds * 2:.1f} large ones a second")


if __name__ == "__main__":
    main()
