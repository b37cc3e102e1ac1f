"""Shared memory between broker and worker, for a client that has none: `python -m tests.benchmarks.far_client`.

The client stands for one on another host: it sends and gets bytes. One worker shares memory with its broker, the other
has `--arena-bytes 0`. They are called in turns, and each round starts all processes anew. Prints the medians of the
rounds: the time of a call, and the CPU time of a call in client, broker and worker.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack

import numpy as np

from tests.benchmarks.fabric import until_served
from tests.benchmarks.shortcut import TURN, Side, report
from tests.support.processes import running_broker, running_workers, wait_for_workers
from zmq_offload import Client

KINDS = {"bytes": "0", "shared": str(512 << 20)}


def side(stack: ExitStack, arena_bytes: str) -> Side:
    broker = stack.enter_context(running_broker())
    stack.enter_context(running_workers(broker.backend, "--executor", "echo", "--arena-bytes", arena_bytes))
    (worker,) = wait_for_workers(broker.frontend, 1)
    client = stack.enter_context(Client(broker.frontend, arena_bytes=0))
    until_served(client, "echo")
    return Side(client, (os.getpid(), broker.broker.popen.pid, worker))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.far_client", description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1 << 16, 1 << 20, 1 << 24], metavar="BYTES")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each size, in each round")
    args = parser.parse_args()
    found: dict[tuple[int, str], list[list[float]]] = {(size, kind): [] for size in args.sizes for kind in KINDS}
    for number in range(args.rounds):
        with ExitStack() as stack:
            kinds = list(KINDS)[:: 1 if number % 2 else -1]
            sides = {kind: side(stack, KINDS[kind]) for kind in kinds}
            for size in args.sizes:
                x = np.random.default_rng(0).random(size // 4, dtype=np.float32)
                for _ in range(max(1, round(args.seconds / 2 / TURN))):
                    for each in sides.values():
                        each.turn(x, 1)
                for kind, each in sides.items():
                    found[size, kind].append(each.figures())
    print(report(found, tuple(KINDS)))


if __name__ == "__main__":
    main()
