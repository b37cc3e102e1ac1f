"""A model on this machine's GPU, beside ONNX Runtime on the same GPU: `python -m tests.benchmarks.gpu --help`.

Both run uncut, take turns, and copy inputs and outputs. ONNX Runtime's row needs the package onnxruntime-gpu; without
it there is none. Without a GPU the command ends with an error.

    python -m tests.benchmarks.gpu det.onnx --input x=N,3,320,320 --batch 1 8 32 --precision float16
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from zmq_offload.compile.accuracy import random_sample
from zmq_offload.compile.build import build_library
from zmq_offload.compile.cuda.names import gpu_target
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.onnx.shapes import parse_shapes
from zmq_offload.errors import FailedPrecondition
from zmq_offload.runtime.gpu import GpuMachine, open_gpu
from zmq_offload.runtime.machine import load_library

Run = Callable[[], list[np.ndarray]]


def own(model: str, shapes: dict[str, tuple[int, ...]], precision: str, feeds: dict[str, np.ndarray]) -> Run:
    """The model by this package, on the first GPU."""
    source = read_model(model)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "model.so"
        build_library(source.uncut(shapes), library, gpu_target("cuda-native"), None, precision)
        machine = GpuMachine(load_library(library), source.inputs(shapes), open_gpu("cuda:0"))
    arrays = list(feeds.values())
    return lambda: machine.run(arrays)


def onnx_runtime(model: str, feeds: dict[str, np.ndarray]) -> Run | None:
    """The model by ONNX Runtime's CUDA provider; None where that is not installed."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return None
    session = onnxruntime.InferenceSession(model, providers=["CUDAExecutionProvider"])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        return None
    return lambda: session.run(None, feeds)


def measured(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run, in turns, after five that do not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 5):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= 5:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=SHAPE", help="N stands for the batch")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--precision", choices=["float32", "float16"], nargs="+", default=["float32", "float16"])
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args(argv)
    try:
        gpu = open_gpu("cuda:0")
    except FailedPrecondition as error:
        print(f"no measurement: {error}", file=sys.stderr)
        return 2
    print(
        f"{gpu.title or gpu.name}: milliseconds with the copies of inputs and outputs, median and 90 % of {args.rounds}"
    )
    for batch in args.batch:
        given = parse_shapes(args.input).items()
        shapes = {name: tuple(batch if d == "N" else int(d) for d in shape) for name, shape in given}
        feeds = random_sample(read_model(args.model).inputs(shapes))
        runs = {f"zmq-offload {p}": own(args.model, shapes, p, feeds) for p in args.precision}
        other = onnx_runtime(args.model, feeds)
        if other is not None:
            runs["ONNX Runtime CUDA"] = other
            for found, right in zip(runs[f"zmq-offload {args.precision[0]}"](), other(), strict=True):
                largest = np.abs(right).max(initial=1e-9)
                print(
                    f"  batch {batch}: off by {np.abs(found - right).max(initial=0) / largest:.2%} of the largest value"
                )
        for name, times in measured(runs, args.rounds).items():
            high = statistics.quantiles(times, n=10)[-1]
            print(f"  batch {batch:3}  {name:24}{statistics.median(times):10.3f}{high:10.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
