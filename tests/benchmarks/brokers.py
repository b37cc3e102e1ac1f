"""Requests per second of several broker processes on one host: `python -m tests.benchmarks.brokers --brokers 1 2 4`.

For each number of brokers: `--workers` echo workers that serve all of them, and for each broker `--clients` processes,
each with `--depth` requests in flight. So a broker has the same to do however many there are. The table has what the
whole fabric served, how often that is what it served with the first number of brokers in the same round, what a request
cost in each kind of process, and how busy the busiest broker was: below 1, a broker's core is not the limit.

On a machine with few cores clients are the limit. With `--share X` each broker gets no more than X of a core, as if it
were so much slower: it is stopped whenever it had more. Then brokers are the limit, as long as all processes together
leave some of the cores idle.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.measure import cpu_seconds
from tests.support.processes import ROOT, running, running_workers, wait_for_workers
from zmq_offload import Client
from zmq_offload.client.session import RetryPolicy


class Measured(NamedTuple):
    """Requests a second, seconds of CPU a request, and the busy share of the busiest broker."""

    rate: float
    broker: float
    worker: float
    client: float
    busiest: float


def call(frontends: Sequence[str], nbytes: int, depth: int, seconds: float) -> int:
    """How many requests are answered in so many seconds, with `depth` in flight, by the first broker."""
    inputs = {"x": np.zeros(nbytes // 4, np.float32)}
    with Client(frontends, policy=RetryPolicy(spread=False)) as client:
        client.infer("echo", inputs)
        print("ready", flush=True)
        sys.stdin.readline()
        end, served = time.monotonic() + seconds, 0
        waiting: deque[Future[Any]] = deque(client.submit("echo", inputs) for _ in range(depth))
        while time.monotonic() < end:
            waiting.popleft().result()
            waiting.append(client.submit("echo", inputs))
            served += 1
        for future in waiting:
            future.cancel()
    return served


@contextmanager
def slowed(pids: Sequence[int], share: float) -> Iterator[None]:
    """Give each process no more than a share of a core."""
    ended = threading.Event()

    def hold(pid: int) -> None:
        start, used = time.monotonic(), cpu_seconds(pid)
        while not ended.wait(0.002):
            over = cpu_seconds(pid) - used > share * (time.monotonic() - start)
            os.kill(pid, signal.SIGSTOP if over else signal.SIGCONT)
        os.kill(pid, signal.SIGCONT)

    threads = [threading.Thread(target=hold, args=(pid,)) for pid in pids if share < 1]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def measure(
    brokers: int, workers: int, clients: int, nbytes: int, depth: int, seconds: float, share: float
) -> Measured:
    """Start everything, let the clients call for so many seconds, and end it."""
    listen = ["--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0", "--processes", str(brokers)]
    with running("-m", "broker", *listen) as started:
        ready = started.wait_for(r"^ready frontend=(\S+) backend=(\S+)$")
        frontends, backends = ready[1].split(","), ready[2]
        pids = [started.popen.pid]
        if brokers > 1:
            pids = [int(started.wait_for(rf"broker {number} is process (\d+)")[1]) for number in range(brokers)]
        with running_workers(backends, "--executor", "echo", "--processes", str(workers)), ExitStack() as stack:
            working = next(wait_for_workers(frontend, workers) for frontend in frontends)
            calling = []
            for number in range(clients * brokers):
                turned = frontends[number % brokers :] + frontends[: number % brokers]
                arguments = ["--call", ",".join(turned), "--bytes", str(nbytes), "--depth", str(depth)]
                command = [sys.executable, "-m", "tests.benchmarks.brokers", *arguments, "--seconds", str(seconds)]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                process = stack.enter_context(subprocess.Popen(command, text=True, cwd=ROOT, **pipes))  # type: ignore[call-overload]
                stack.callback(process.kill)
                calling.append(process)
            for process in calling:
                assert process.stdout.readline() == "ready\n"
            kinds = (pids, working, [process.pid for process in calling])
            before = [[cpu_seconds(pid) for pid in kind] for kind in kinds]
            for process in calling:
                process.stdin.write("\n")
                process.stdin.flush()
            with slowed(pids, share):
                time.sleep(seconds)  # all of them call meanwhile
            used = [
                [cpu_seconds(pid) - then for pid, then in zip(kind, thens, strict=True)]
                for kind, thens in zip(kinds, before, strict=True)
            ]
            served = sum(int(process.stdout.readline()) for process in calling)
    return Measured(served / seconds, *(sum(kind) / served for kind in used), max(used[0]) / seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.brokers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--brokers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=1, help="for each broker")
    parser.add_argument("--bytes", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of a core, for each broker")
    parser.add_argument("--call", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.call:
        print(call(given.call.split(","), given.bytes, given.depth, given.seconds))
        return
    print("| brokers | requests/s | ratio | broker | worker | client | busiest broker |")
    print("|---|---|---|---|---|---|---|")
    for _ in range(given.rounds):
        first = 0.0
        for brokers in given.brokers:
            found = measure(brokers, given.workers, given.clients, given.bytes, given.depth, given.seconds, given.share)
            times = " | ".join(f"{seconds * 1e6:.1f} us" for seconds in found[1:4])
            first = first or found.rate
            print(
                f"| {brokers} | {found.rate:,.0f} | {found.rate / first:.2f}x | {times} | {found.busiest:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
