"""What a worker and a device have in memory, and how long they take to start: `python -m tests.benchmarks.memory`.

The first table has one process of each kind after each step of loading a subgraph. The second has workers, from the
start of their supervisor until all models are served. Workers of all kinds take turns. Resident is what the kernel
counts for the process (RSS). Proportional (PSS) divides each page among the processes that have it, so that libraries
which many processes share count once. CPU time is that of supervisor and workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.support.compiled import copies
from tests.support.processes import ROOT, eventually, running_broker, running_workers
from zmq_offload import Client

STEPS = """
import json, os, sys, time
from pathlib import Path
began = time.perf_counter()
def note(step):
    sizes = dict(line.split(":") for line in open("/proc/self/smaps_rollup") if line.count(":") == 1)
    row = [step, *(int(sizes[kind].split()[0]) / 1024 for kind in ("Rss", "Pss")), time.perf_counter() - began]
    print(json.dumps(row), flush=True)
note("Python")
import numpy
note("NumPy")
if sys.argv[2] == "package":
    import tvm
    note("the package tvm")
import tvm_ffi
note("tvm_ffi")
from zmq_offload.runtime.machine import Machine, load_library
note("TVM's runtime")
from zmq_offload.artifacts.repository import Repository
model = Repository(Path(sys.argv[1]).parent.parent).read("wide", 1)
machine = Machine(load_library(Path(sys.argv[1]) / "subgraph.so"), model.inputs)
note("the subgraph, loaded")
machine.run([numpy.ones(spec.shape, spec.dtype) for spec in model.inputs])
note("the subgraph, run once")
"""

Row = tuple[str, float, float, float]
"""What, megabytes resident, megabytes proportional, seconds."""


def product(folder: Path, megabytes: float) -> Path:
    """A version of four matrix products in a row, with so many megabytes of weights in all."""
    from onnx import helper

    from tests.support import onnx_models
    from zmq_offload.compile import compile_model

    folder.mkdir()
    side = round((megabytes * 1e6 / 16) ** 0.5)
    nodes = [helper.make_node("Relu", ["x"], ["h0"])]
    nodes += [helper.make_node("MatMul", [f"h{n}", f"w{n}"], [f"h{n + 1}"]) for n in range(4)]
    weights = {f"w{n}": onnx_models.random(side, side, seed=n) for n in range(4)}
    path = onnx_models.write(folder / "m.onnx", nodes, {"x": [1, side]}, {"h4": [1, side]}, weights)
    compile_model(path, cut=["h0"], name="wide", output=folder)
    return folder / "repository" / "wide" / "1"


def process(version: Path, kind: str, compiler: str) -> list[Row]:
    """The steps of a process that loads a version."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(version), kind],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TVM_USE_RUNTIME_LIB": compiler},
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def worker(repository: Path | None, models: int, processes: int = 1) -> tuple[float, float, float, float]:
    """Resident and proportional megabytes of each of the workers, and seconds, of the clock and of CPU time, until they
    all serve all models."""
    given = ["--executor", "echo"] if repository is None else ["--repository", str(repository)]
    with running_broker() as broker, Client(broker.frontend) as client:
        began = time.perf_counter()
        with running_workers(broker.backend, *given, "--processes", str(processes)) as supervisor:

            def served() -> bool:
                found = client.models()
                return len(found) == models and all(model["workers"] == processes for model in found)

            eventually(served, 120)
            took = time.perf_counter() - began
            parent = supervisor.popen.pid
            children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
            used = sum(map(_cpu, [parent, *children]))
            time.sleep(1)  # what loading left behind is given back
            sizes = [_sizes(child) for child in children]
    return statistics.mean(s[0] for s in sizes), statistics.mean(s[1] for s in sizes), took, used


def _cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _sizes(pid: int) -> tuple[float, float]:
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    found = {line[0]: int(line[1]) / 1024 for line in lines if line[0] in ("Rss:", "Pss:")}
    return found["Rss:"], found["Pss:"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.memory", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--weights", type=float, default=20.0, metavar="MB", help="of the model")
    parser.add_argument("--models", type=int, default=50, help="in one worker, each with a tenth of the weights")
    parser.add_argument("--runs", type=int, default=3, help="of which the median is printed")
    parser.add_argument("--workers-only", action="store_true", help="without the first table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        folder = Path(name)
        version = product(folder / "one", args.weights)
        small = product(folder / "small", args.weights / 10)
        if not args.workers_only:
            _print(["a process, step by step", "resident MB", "proportional MB", "seconds"], _steps(version, args.runs))
        kinds: dict[str, Callable[[], tuple[float, float, float, float]]] = {
            "echo": partial(worker, None, 1),
            f"1 model, {args.weights:g} MB": partial(worker, version.parent.parent, 1),
        }
        for count in (1, args.models):
            root = copies(small, folder / f"many{count}", count)
            kinds[f"{count} models of {args.weights / 10:g} MB"] = partial(worker, root, count)
            if count > 1:
                kinds[f"{count} models, 2 processes"] = partial(worker, root, count, 2)
        found: dict[str, list[tuple[float, ...]]] = {what: [] for what in kinds}
        for _ in range(args.runs):
            for what, measured in kinds.items():
                found[what].append(measured())
        rows = [
            [
                what,
                *(
                    f"{statistics.median(run):.{digits}f}"
                    for run, digits in zip(zip(*runs, strict=True), (1, 1, 2, 2), strict=True)
                ),
            ]
            for what, runs in found.items()
        ]
        _print(["a worker", "resident MB", "proportional MB", "seconds to serve", "CPU seconds"], rows)


def _steps(version: Path, runs: int) -> list[list[str]]:
    rows: list[list[str]] = []
    for title, kind, compiler in (
        ("", "library", "1"),
        ("by the package tvm, its runtime: ", "package", "1"),
        ("by the package tvm, with its compiler: ", "package", "0"),
    ):
        found = [process(version, kind, compiler) for _ in range(runs)]
        for steps in zip(*found, strict=True):
            sizes = [statistics.median(step[i] for step in steps) for i in (1, 2, 3)]
            rows.append([title + steps[0][0], f"{sizes[0]:.1f}", f"{sizes[1]:.1f}", f"{sizes[2]:.2f}"])
    return rows


def _print(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (headings, ["---"] * len(headings), *rows):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


if __name__ == "__main__":
    main()
