"""Measures what the executor adds to a bare call of the VM: `python -m tests.benchmarks.executor`.

CPU time of `GraphExecutor.run`, and of the VM's function on existing tensors, in turns in one run, on a subgraph that
takes and returns 38,400 bytes and computes next to nothing. The difference is copying the inputs and making arrays of
the outputs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TVM_NUM_THREADS", "1")

import numpy as np
import tvm
from onnx import helper
from tvm.runtime import vm

from tests.support import onnx_models
from workers.executor import GraphExecutor
from zmq_offload.artifacts.repository import LIBRARY, Repository
from zmq_offload.compile import compile_model

SHAPE = (1, 24, 20, 20)
"""38,400 bytes of float32."""


def subgraph(folder: Path) -> Repository:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Add", ["h", "one"], ["y"])]
    shapes = {"x": SHAPE}, {"y": SHAPE}
    path = onnx_models.write(folder / "m.onnx", nodes, *shapes, {"one": np.ones(1, "f4")})
    compile_model(path, cut=["h"], name="m", output=folder)
    return Repository(folder / "repository")


def cpu_each(call: Callable[[], object], calls: int) -> float:
    start = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - start) / calls


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.executor", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=200, help="of each in a round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        repository = subgraph(Path(scratch))
        executor = GraphExecutor(repository, "m", 1)
        library = tvm.runtime.load_module(str(repository.path("m", 1) / LIBRARY))
        bare = vm.VirtualMachine(library, tvm.cpu())["main"]
        frame = np.random.default_rng(0).random(SHAPE, np.float32)
        tensor = tvm.runtime.tensor(frame)
        calls = {"bare VM call": lambda: bare(tensor), "GraphExecutor.run": lambda: executor.run([[frame]])}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(args.rounds):
            for name, call in calls.items():
                times[name].append(cpu_each(call, args.calls))
    medians = {name: statistics.median(own) * 1e6 for name, own in times.items()}
    for name, median in medians.items():
        print(f"{name:<18} {median:6.1f} µs of CPU")
    first, second = medians.values()
    print(f"{'added':<18} {second - first:6.1f} µs of CPU a call, {frame.nbytes:,} bytes in and out")


if __name__ == "__main__":
    main()
