"""What a Unix socket saves over TCP between processes of one host: `python -m tests.benchmarks.shortcut`.

A broker with an echo worker and a client that stay at TCP, and one with those that go on to Unix sockets, as they do by
themselves, in turns. Long tensors pass through shared memory on both sides. With `--depth` so many calls are under way.
Each round starts all processes anew, the other side first in every second one. Prints the medians of the rounds, and in
brackets the least and the most: the time from one call's end to the next, which is the latency of a lone one, and the
CPU time of a call in client, broker and worker.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.benchmarks.fabric import until_served
from tests.benchmarks.measure import cpu_seconds
from tests.support.processes import running, running_workers, wait_for_workers
from zmq_offload import Client

TURN = 0.05
"""Seconds of one side before it is the other's turn."""

KINDS = ("TCP", "Unix")
PARTS = ("a call", "client", "broker", "worker", "CPU, all")

_AT_PORT = """
import runpy
import broker.ports.connection
broker.ports.connection.Side.nearby = lambda self: None
runpy.run_module("broker", run_name="__main__")
"""
"""A broker that tells nobody of a Unix socket."""


@dataclass
class Side:
    """A fabric of one transport, and what its turns in one round came to."""

    client: Client
    pids: tuple[int, ...]
    is_alone: bool = True
    """Whether one call is under way at once."""
    times: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def turn(self, x: np.ndarray[Any, Any], depth: int) -> None:
        """Have so many calls under way for a while; one that is alone is made by `infer`."""
        client, clock, self.is_alone = self.client, time.perf_counter, depth == 1
        waiting = deque(client.submit("echo", {"x": x}) for _ in range(depth - 1))
        client.infer("echo", {"x": x})
        before = [cpu_seconds(pid) for pid in self.pids]
        last = clock()
        end = last + TURN
        while last < end:
            if depth == 1:
                client.infer("echo", {"x": x})
            else:
                waiting.append(client.submit("echo", {"x": x}))
                waiting.popleft().result()
            now = clock()
            self.times.append(now - last)
            last = now
        for part, pid in enumerate(self.pids):
            self.cpu[part] += cpu_seconds(pid) - before[part]
        for future in waiting:
            future.result()

    def figures(self) -> list[float]:
        """The time and the CPU times of a call, in microseconds."""
        cpu = [part / len(self.times) for part in self.cpu]
        typical = statistics.median if self.is_alone else statistics.fmean  # answers may come in bursts
        found = [typical(self.times), *cpu, sum(cpu)]
        self.times, self.cpu = [], [0.0, 0.0, 0.0]
        return [1e6 * value for value in found]


def side(stack: ExitStack, kind: str) -> Side:
    program = ("-m", "broker") if kind == "Unix" else ("-c", _AT_PORT)
    ports = ("--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0")
    broker = stack.enter_context(running(*program, *ports))
    frontend, backend = broker.wait_for(r"ready frontend=(\S+) backend=(\S+)").groups()
    stack.enter_context(running_workers(backend, "--executor", "echo"))
    (worker,) = wait_for_workers(frontend, 1)
    client = stack.enter_context(Client(frontend))
    until_served(client, "echo")
    return Side(client, (os.getpid(), broker.popen.pid, worker))


def measured(sizes: list[int], depth: int, rounds: int, seconds: float) -> dict[tuple[int, str], list[list[float]]]:
    found: dict[tuple[int, str], list[list[float]]] = {(size, kind): [] for size in sizes for kind in KINDS}
    for number in range(rounds):
        with ExitStack() as stack:
            sides = {kind: side(stack, kind) for kind in KINDS[:: 1 if number % 2 else -1]}
            for size in sizes:
                x = np.random.default_rng(0).random(size // 4, dtype=np.float32)
                for _ in range(max(1, round(seconds / 2 / TURN))):
                    for each in sides.values():
                        each.turn(x, depth)
                for kind, each in sides.items():
                    found[size, kind].append(each.figures())
    return found


def report(found: dict[tuple[int, str], list[list[float]]], kinds: tuple[str, str] = KINDS) -> str:
    """The figures of both kinds by size, and the ratios of the second to the first."""
    lines = [f"| bytes | | {' | '.join(PARTS)} |", f"|{'---|' * (2 + len(PARTS))}"]
    for size in dict.fromkeys(size for size, _ in found):
        first, second = (found[size, kind] for kind in kinds)
        for kind in kinds:
            cells = [f"{statistics.median(column):,.0f} µs" for column in zip(*found[size, kind], strict=True)]
            lines.append(f"| {size:,} | {kind} | {' | '.join(cells)} |")
        ratios = [[one / other for one, other in zip(*pair, strict=True)] for pair in zip(second, first, strict=True)]
        cells = [
            f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})"
            for column in zip(*ratios, strict=True)
        ]
        lines.append(f"| {size:,} | {kinds[1]} / {kinds[0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shortcut", description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 38_400, 1 << 20], metavar="BYTES")
    parser.add_argument("--depth", type=int, default=1, help="calls under way at once", metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each size, in each round")
    args = parser.parse_args()
    print(report(measured(args.sizes, args.depth, args.rounds, args.seconds)))


if __name__ == "__main__":
    main()
