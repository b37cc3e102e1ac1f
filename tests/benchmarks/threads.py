"""Threads or processes: `python -m tests.benchmarks.threads`.

Requests per second of a compute-bound subgraph (convolutions) on all cores of this machine: one worker process with a
thread per core, one process with one thread per core, and a single process with one thread. All fabrics run at the same
time and are loaded in turns, by twice as many clients as cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from onnx import helper

from tests.support import onnx_models
from tests.support.processes import eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.compile import compile_model

SIDE, CHANNELS = 56, 64


def subgraph(folder: Path, layers: int) -> Path:
    """3x3 convolutions of 64 channels at 56 x 56: 0.23 GFLOP each, and 800 KB each way."""
    nodes = [helper.make_node("Relu", ["x"], ["t0"])]
    weights = {}
    for at in range(layers):
        weights[f"w{at}"] = onnx_models.random(CHANNELS, CHANNELS, 3, 3, seed=at) / 24
        nodes.append(helper.make_node("Conv", [f"t{at}", f"w{at}"], [f"c{at}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"t{at + 1}"]))
    shape = [1, CHANNELS, SIDE, SIDE]
    path = onnx_models.write(folder / "m.onnx", nodes, {"x": shape}, {f"t{layers}": shape}, weights)
    compile_model(path, cut=["t0"], name="m", output=folder)
    return folder / "repository"


@contextmanager
def fabric(repository: Path, processes: int, threads: int) -> Iterator[str]:
    options = ["--repository", str(repository), "--processes", str(processes), "--threads", str(threads)]
    with (
        tempfile.TemporaryDirectory() as alone,  # the fabrics run in turns: each has all cores
        running_broker() as broker,
        running_workers(broker.backend, *options, TMPDIR=alone),
    ):
        with Client(broker.frontend) as client:
            eventually(lambda: [m["workers"] for m in client.models()] == [processes], timeout=60)
        yield broker.frontend


def rate(endpoint: str, clients: int, seconds: float) -> float:
    """Requests per second."""
    x = np.random.default_rng(0).random((1, CHANNELS, SIDE, SIDE), np.float32)
    done = [0] * clients
    end = time.monotonic() + seconds

    def run(number: int) -> None:
        with Client(endpoint) as client:
            while time.monotonic() < end:
                client.infer("m", {"t0": x})
                done[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.monotonic() - start)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.threads", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each fabric in a round")
    parser.add_argument("--layers", type=int, default=3, help="convolutions: with more, the network counts less")
    args = parser.parse_args()
    shapes = {
        f"1 process x {cores} threads": (1, cores),
        f"{cores} processes x 1 thread": (cores, 1),
        "1 process x 1 thread": (1, 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in shapes}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        repository = subgraph(Path(scratch), args.layers)
        endpoints = {name: stack.enter_context(fabric(repository, *shape)) for name, shape in shapes.items()}
        for endpoint in endpoints.values():
            rate(endpoint, 1, 0.5)
        for _ in range(args.rounds):
            for name, endpoint in endpoints.items():
                rates[name].append(rate(endpoint, 2 * cores, args.seconds))
    print("| workers | requests/s, median | lowest | highest |\n|---|---|---|---|")
    for name, own in rates.items():
        print(f"| {name} | {statistics.median(own):.1f} | {min(own):.1f} | {max(own):.1f} |")
    threaded, many, one = (statistics.median(own) for own in rates.values())
    print(f"\nprocesses / threads: {many / threaded:.2f}; {cores} processes / 1: {many / one:.2f}")


if __name__ == "__main__":
    main()
