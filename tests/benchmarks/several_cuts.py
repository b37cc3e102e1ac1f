"""What several cuts in one bundle cost, against a bundle for each of them: bytes, memory, and the time of each entry.

    python -m tests.benchmarks.several_cuts [--cuts K] [NAME ...]

The cuts are spread over the network's cuts (by the work in front of them). The largest library alone is that of the
deepest cut for the device, and that of the first for workers. Times are CPU time of one thread, medians of calls in
turns; those of the device's part end where its request begins.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TVM_NUM_THREADS", "1")

import numpy as np
import onnx

from tests.benchmarks.models import CASES, Case
from zmq_offload.artifacts.manifest import LIBRARY
from zmq_offload.artifacts.repository import LIBRARY as SUBGRAPH
from zmq_offload.compile import Compiled, compile_model, list_cuts
from zmq_offload.device.remote import InFlight, RemoteModule, registered
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime.machine import MAIN, Machine, load_library

ROUNDS = 30


class Nothing:
    """A client that replies at once."""

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Any) -> Mapping[str, Array]:
        found: Mapping[str, Array] = options["outputs"]
        return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="words in the names of the networks (default: four)")
    parser.add_argument("--cuts", type=int, default=5, metavar="K")
    args = parser.parse_args(argv)
    words = args.names or ["MobileNet", "ResNet", "transformer", "det 320"]
    print("| network | side | largest alone | one library | more | all alone | time of entries, alone = 1 |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        if any(word in case.name for word in words):
            with tempfile.TemporaryDirectory() as folder:
                measure(case, args.cuts, Path(folder))


def measure(case: Case, count: int, folder: Path) -> None:
    file = folder / "m.onnx"
    onnx.save(case.model(), file)
    name = onnx.load(file, load_external_data=False).graph.input[0].name
    shapes = {name: case.shape}
    points = [point for point in list_cuts(file, inputs=shapes) if 0.02 < point.share < 0.98]
    places = sorted({round(i * (len(points) - 1) / (count - 1)) for i in range(count)})
    cuts = list(dict.fromkeys(tuple(points[place].names) for place in places))
    together = compile_model(file, inputs=shapes, cuts=cuts, name="m", output=folder / "together")
    alone = [
        compile_model(file, inputs=shapes, cut=cut, name="m", output=folder / str(i)) for i, cut in enumerate(cuts)
    ]
    for side in ("device", "workers"):
        one = _library(together, 0, side).stat().st_size
        sizes = [_library(compiled, 0, side).stat().st_size for compiled in alone]
        ratios = [_ratio(together, at, alone[at], side) for at in range(len(cuts))]
        print(
            f"| {case.name} | {side} | {max(sizes) / 1e6:.2f} MB | {one / 1e6:.2f} MB | {one / max(sizes) - 1:.1%} | "
            f"{sum(sizes) / 1e6:.2f} MB | {min(ratios):.2f} to {max(ratios):.2f} |",
            flush=True,
        )


def _library(compiled: Compiled, at: int, side: str) -> Path:
    return compiled.device / LIBRARY if side == "device" else compiled.subgraphs[at] / SUBGRAPH


def _ratio(together: Compiled, at: int, alone: Compiled, side: str) -> float:
    """The time of an entry, as a multiple of the same alone."""
    manifest, model = together.manifest, together.models[at]
    entry, specs = (manifest.splits[at].entry, manifest.inputs) if side == "device" else (model.entry, model.inputs)
    machines = (
        _machine(together, _library(together, at, side), entry),
        _machine(alone, _library(alone, 0, side), MAIN),
    )
    arrays = [_random(spec) for spec in specs]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for machine, own in zip(machines, times, strict=True):
            start = time.process_time()
            machine.run(arrays)
            own.append(time.process_time() - start)
    one, other = (statistics.median(own[3:]) for own in times)
    return one / other


def _machine(compiled: Compiled, library: Path, entry: str) -> Machine:
    client = Nothing()
    regions = {r.symbol: RemoteModule(r, client, None, InFlight()) for r in compiled.manifest.offloaded}
    with registered(regions):
        return Machine(load_library(library), entry=entry, calls_back=True)


def _random(spec: TensorSpec) -> Array:
    return np.random.default_rng(0).standard_normal(spec.shape).astype(spec.dtype)


if __name__ == "__main__":
    main()
