"""Measures what loading a version costs the requests of other models: `python -m tests.benchmarks.reload`.

One client calls a small model without a pause. Windows alternate: in one nothing else happens, in the other a new
version of a large model is loaded, from its appearance in the repository until all workers serve it. Its files are
written before. With `--warmup N` it is warmed up by N runs and is a canary with a label. The quiet windows are measured
twice; their difference is the noise of the machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from onnx import helper

from tests.support import onnx_models
from tests.support.processes import Process, eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.artifacts.config import CONFIG
from zmq_offload.artifacts.repository import DESCRIPTION, LIBRARY
from zmq_offload.compile import compile_model


def product(folder: Path, name: str, side: int) -> Path:
    """A version of a matrix product with side * side weights."""
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    weights = {"w": onnx_models.random(side, side)}
    path = onnx_models.write(folder / f"{name}.onnx", nodes, {"x": [1, side]}, {"y": [1, side]}, weights)
    compile_model(path, cut=["h"], name=name, output=folder / name)
    repository = folder / "repository" / name
    (folder / name / "repository" / name).rename(repository)
    return repository / "1"


def draft(source: Path, version: int) -> Path:
    """A copy as another version, in a hidden folder next to it."""
    place = Path(shutil.copytree(source, source.with_name(f".{version}")))
    described = json.loads((place / DESCRIPTION).read_text()) | {"version": version}
    (place / DESCRIPTION).write_text(json.dumps(described))
    return place


class Calls:
    """Latencies of calls of the small model, in milliseconds."""

    def __init__(self, client: Client, side: int) -> None:
        self._client, self._x = client, np.ones((1, side), np.float32)
        self.quiet: list[float] = []
        self.again: list[float] = []
        self.loading: list[float] = []

    def until(self, ended: threading.Event, into: list[float]) -> None:
        while not ended.is_set():
            began = time.perf_counter()
            self._client.infer("small", {"h": self._x}, timeout=60)
            into.append((time.perf_counter() - began) * 1e3)
            time.sleep(0.001)


def configure(model: Path, version: int, runs: int) -> None:
    """Let a version be a canary with a label, and warm it up before it is announced."""
    if runs:
        draft = model / ".config.toml"
        draft.write_text(
            f"labels = {{ next = {version} }}\n[warmup]\nruns = {runs}\ninputs = 'random'\n"
            f"[canary]\nversion = {version}\nshare = 0.1\n"
        )
        draft.rename(model / CONFIG)


def served(workers: Process, version: int, processes: int, ended: threading.Event) -> None:
    for at in range(processes):
        workers.wait_for(rf"model large version {version} is served", skip=at, timeout=300)
    ended.set()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reload", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=8192, help="of the large model's matrix: 8192 is 256 MB")
    parser.add_argument("--small", type=int, default=256, help="of the small model's matrix")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window in which nothing else happens")
    parser.add_argument("--warmup", type=int, default=0, help="runs before a version is announced")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "repository").mkdir()
        product(folder, "small", args.small)
        large = product(folder, "large", args.side)
        print(f"{(large / LIBRARY).stat().st_size / 2**20:.0f} MB", flush=True)
        options = ["--repository", str(folder / "repository"), "--processes", str(args.processes), "--refresh", "0.5"]
        with (
            running_broker() as broker,
            running_workers(broker.backend, *options) as workers,
            Client(broker.frontend) as client,
        ):
            eventually(lambda: [m["workers"] for m in client.models()] == [args.processes] * 2, timeout=120)
            calls, took = Calls(client, args.small), []
            for version in range(2, args.rounds + 2):
                hidden = draft(large, version)
                for quiet in (calls.quiet, calls.again):
                    ended = threading.Event()
                    threading.Timer(args.seconds, ended.set).start()
                    calls.until(ended, quiet)
                ended = threading.Event()
                began = time.monotonic()
                configure(large.parent, version, args.warmup)
                hidden.rename(large.with_name(str(version)))
                threading.Thread(target=served, args=(workers, version, args.processes, ended)).start()
                calls.until(ended, calls.loading)
                took.append(time.monotonic() - began)
                if version > 2:
                    shutil.rmtree(large.with_name(str(version - 1)))
    print("| | calls | p50 ms | p99 ms | longest ms |\n|---|---|---|---|---|")
    for what, own in (
        ("nothing else", calls.quiet),
        ("nothing else, again", calls.again),
        ("a version is loaded", calls.loading),
    ):
        p50, p99 = np.percentile(own, [50, 99])
        print(f"| {what} | {len(own)} | {p50:.2f} | {p99:.2f} | {max(own):.0f} |")
    quiet, again, loading = (np.percentile(own, 99) for own in (calls.quiet, calls.again, calls.loading))
    print(f"\np99 over that of nothing else: loading {loading / quiet:.2f}, nothing else again {again / quiet:.2f}")
    print(f"until it was served, median: {np.median(took):.1f} s")


if __name__ == "__main__":
    main()
