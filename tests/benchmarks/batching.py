"""Measures what batching gains: `python -m tests.benchmarks.batching`.

Requests per second of 16 concurrent clients, and the median round trip of one client alone, with and without batching.
Two fabrics with one worker each serve the same subgraph and are loaded in turns. The subgraph is deep and narrow, as
recurrent networks are, so that the cost of a call hardly depends on the number of rows.
"""

from __future__ import annotations

import argparse
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

WIDTH, LAYERS, CLIENTS, MAX_BATCH = 16, 768, 16, 16


def subgraph(folder: Path) -> Path:
    nodes = [helper.make_node("Relu", ["x"], ["t0"])]
    weights = {}
    for at in range(LAYERS):
        weights[f"w{at}"] = onnx_models.random(WIDTH, WIDTH, seed=at) / 4
        nodes.append(helper.make_node("MatMul", [f"t{at}", f"w{at}"], [f"p{at}"]))
        nodes.append(helper.make_node("Tanh", [f"p{at}"], [f"t{at + 1}"]))
    shapes = {"x": ["N", WIDTH]}, {f"t{LAYERS}": ["N", WIDTH]}
    path = onnx_models.write(folder / "m.onnx", nodes, *shapes, weights)
    compile_model(path, inputs={"x": ("N", WIDTH)}, cut=["t0"], name="m", output=folder)
    return folder / "repository"


@contextmanager
def fabric(repository: Path, *options: str) -> Iterator[str]:
    common = ["--repository", str(repository), "--threads", "1"]
    with running_broker() as broker, running_workers(broker.backend, *common, *options):
        with Client(broker.frontend) as client:
            eventually(lambda: bool(client.models()), timeout=60)
        yield broker.frontend


def load(endpoint: str, clients: int, seconds: float) -> tuple[float, float]:
    """Requests per second, and the median round trip in seconds."""
    x = np.random.default_rng(0).random((1, WIDTH), np.float32)
    times: list[float] = []
    end = time.monotonic() + seconds

    def run() -> None:
        with Client(endpoint) as client:
            client.infer("m", {"t0": x})
            while (start := time.monotonic()) < end:
                client.infer("m", {"t0": x})
                times.append(time.monotonic() - start)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) / (time.monotonic() - start), statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.batching", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each fabric in a round")
    parser.add_argument("--delay", type=int, default=500, metavar="US", help="--batch-delay of the workers")
    args = parser.parse_args()
    kinds = {"one at a time": [], f"--max-batch {MAX_BATCH}": ["--max-batch", str(MAX_BATCH)]}
    kinds[f"--max-batch {MAX_BATCH}"] += ["--batch-delay", str(args.delay)]
    many: dict[str, list[float]] = {name: [] for name in kinds}
    alone: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        repository = subgraph(Path(scratch))
        endpoints = {name: stack.enter_context(fabric(repository, *options)) for name, options in kinds.items()}
        for _ in range(args.rounds):
            for name, endpoint in endpoints.items():
                many[name].append(load(endpoint, CLIENTS, args.seconds)[0])
            for name, endpoint in endpoints.items():
                alone[name].append(load(endpoint, 1, args.seconds / 2)[1])
    print(f"| worker | requests/s, {CLIENTS} clients | p50, 1 client |\n|---|---|---|")
    for name in kinds:
        print(f"| {name} | {statistics.median(many[name]):,.0f} | {statistics.median(alone[name]) * 1e3:.2f} ms |")
    (off, on), (before, after) = ([statistics.median(own) for own in both.values()] for both in (many, alone))
    print(f"\nrequests/s: {on / off:.2f} times as many; p50 of one client: {after / before:.2f} times as long")


if __name__ == "__main__":
    main()
