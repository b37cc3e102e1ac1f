"""Errors of int8 and half networks against a float64 evaluation: `python -m tests.benchmarks.exactness`.

Ours and ONNX Runtime's, on one random input: the largest difference and the root of the mean square, as shares of the
largest value. Builds the networks of `bench_models`; --python names the interpreter that has torch and transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from tests.benchmarks.networks import NETWORKS, SHAPES, sample
from tests.support.float64 import Array, in_float64
from zmq_offload.compile import UncutModel, compile_uncut

FAMILIES = ("int8", "float16")


def errors(results: list[Array], right: list[Array]) -> tuple[float, float]:
    """The largest difference and the root of the mean square, of the result where the former is largest."""
    found = []
    for result, exact in zip(results, right, strict=True):
        apart, largest = np.abs(result.astype("f8") - exact), max(np.abs(exact).max(), 1e-300)
        found.append((float(apart.max() / largest), float(np.sqrt((apart**2).mean()) / largest)))
    return max(found)


def compared(file: Path, shapes: dict[str, tuple[int, ...]]) -> list[tuple[float, float]]:
    """The errors of this project and of ONNX Runtime."""
    model = onnx.load(file)
    inputs = sample(model, shapes)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "m.so"
        compile_uncut(file, library, inputs=shapes or None)
        ours = UncutModel(library)(*inputs.values())
    theirs = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, inputs)
    right = in_float64(model, inputs)
    return [errors(list(results), right) for results in (ours, theirs)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.exactness", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="networks or families; default: all of int8 and float16")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch and transformers")
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/zmq-offload-networks"), help="where ONNX files are kept"
    )
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    names = args.names or FAMILIES
    print(f"{'network':<24}{'ours: largest':>15}{'rms':>10}{'ONNX Runtime: largest':>24}{'rms':>10}")
    for network in NETWORKS:
        if network.name in names or network.family in names:
            with contextlib.redirect_stdout(sys.stderr):
                (most, mean), (their_most, their_mean) = compared(
                    network.build(args.folder, args.python), SHAPES.get(network.name, {})
                )
            print(f"{network.name:<24}{most:>15.1e}{mean:>10.1e}{their_most:>24.1e}{their_mean:>10.1e}", flush=True)


if __name__ == "__main__":
    main()
