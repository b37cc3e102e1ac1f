"""Model files of any kind beside their own runtime: `python -m tests.benchmarks.packaged FILE...`.

For files that nobody made for this project, such as those inside packages on PyPI. Each file is imported, its cuts are
listed, it is compiled without tuning and run in turns with ONNX Runtime (LiteRT for .tflite, PyTorch for .pt2), with
one thread. A step that fails gives its error in the table. The ratio is of CPU times, the minimum of many calls.

`--input NAME=1,3,224,224` gives a shape to each file that has an input of this name that this shape fits. It may be
given several times. Other inputs keep the shape that the file has. `--value NAME=16000` gives a
scalar input. A file in a folder named like a package of pip (`silero_vad-6.2.3-py3-none-any.whl`) is listed with it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Row = dict[str, Any]
TIME_LIMIT = 300
"""Seconds after which a file is given up."""


def measure(file: Path, shapes: list[tuple[str, tuple[int, ...]]], values: dict[str, float], seconds: float) -> Row:
    """Import, list cuts, compile and run one file; what was measured until something failed, and the error."""
    from zmq_offload.compile import compile_uncut, list_cuts
    from zmq_offload.compile.models.read import read_model
    from zmq_offload.compile.uncut import UncutModel
    from zmq_offload.errors import OffloadError

    row: Row = {}
    clock = time.perf_counter
    try:
        model = read_model(file)
        known = _shapes(file, model)
        given = {name: shape for name, shape in shapes if _fits(shape, known.get(name, ()))}
        specs = model.inputs(given)
        begin = clock()
        row["cuts"] = len(list_cuts(file, inputs=given))
        row["list s"] = clock() - begin
        with tempfile.TemporaryDirectory() as folder:
            begin = clock()
            compile_uncut(file, Path(folder) / "m.so", inputs=given)
            row["compile s"] = clock() - begin
            ours = UncutModel(Path(folder) / "m.so")
        sample = model.random_inputs(specs, given, 0)
        sample |= {n: np.asarray(v, sample[n].dtype).reshape(sample[n].shape) for n, v in values.items() if n in sample}
        inputs = [sample[spec.name] for spec in specs]
        theirs = _reference(file, model)
        expected = theirs(sample)
        row["off"] = max(_difference(a, b) for a, b in zip(ours(*inputs), expected, strict=True))
        row |= _times(lambda: ours(*inputs), lambda: theirs(sample), seconds)
    except OffloadError as error:
        row["error"] = str(error).removeprefix(f"{file}").lstrip(": ")
    return row


def _shapes(file: Path, model: Any) -> dict[str, list[int]]:
    """The shape of each input, with 0 or less where it is open. That of an ONNX file is known before it is given."""
    if model.format != "ONNX":
        return {spec.name: list(spec.shape) for spec in model.inputs({})}
    graph = onnx.load(file, load_external_data=False).graph
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}


def _fits(shape: tuple[int, ...], known: Sequence[int]) -> bool:
    return len(shape) == len(known) and all(have <= 0 or have == dim for dim, have in zip(shape, known, strict=True))


def _reference(file: Path, model: Any) -> Callable[[dict[str, Any]], list[Any]]:
    """The file's own runtime, optimized, with one thread."""
    if model.format != "ONNX":
        reference = model.reference()
        return lambda sample: list(reference.run(sample).values())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda sample: list(session.run(None, sample))


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return math.inf
    if not theirs.size:
        return 0.0
    a, b = ours.astype("float64"), theirs.astype("float64")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def _times(ours: Callable[[], object], theirs: Callable[[], object], seconds: float) -> Row:
    times: dict[str, list[float]] = {"ours ms": [], "theirs ms": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["ours ms"]) < 5:
        for name, call in (("ours ms", ours), ("theirs ms", theirs)):
            call()  # the caches hold what the other left
            begin = time.process_time()
            call()
            times[name].append(time.process_time() - begin)
    return {name: min(taken) * 1e3 for name, taken in times.items()}


def origin(file: Path) -> tuple[str, str]:
    """The package and version that the file lies in, if a folder says so, and the file's name."""
    for part in file.parts[:-1]:
        found = re.match(r"([A-Za-z0-9_.]+)-(\d[\w.]*?)(-py|-cp|\.tar\.gz|$)", part)
        if found:
            return f"{found[1].replace('_', '-')} {found[2]}", file.name
    return "", file.name


def table(rows: dict[str, Row]) -> str:
    """A line for each file, and the counts."""
    lines = [
        "| package | file | cuts | listed in s | compiled in s | off by | ours, ms | its runtime, ms | ratio |",
        "|---|---|" + "---:|" * 7,
    ]
    for name, row in rows.items():
        start = "| {} | {} ".format(*origin(Path(name)))
        if "error" in row:
            lines.append(f"{start}| {row['error'].replace('|', '/')} |" + " |" * 6)
            continue
        times = (row["ours ms"], row["theirs ms"])
        lines.append(
            f"{start}| {row['cuts']} | {row['list s']:.1f} | {row['compile s']:.1f} | {row['off']:.1e} "
            f"| {times[0]:.2f} | {times[1]:.2f} | {times[0] / times[1]:.2f} |"
        )
    ratios = [row["ours ms"] / row["theirs ms"] for row in rows.values() if "error" not in row]
    mean = f", geometric mean of the ratios {statistics.geometric_mean(ratios):.2f}" if ratios else ""
    return "\n".join([*lines, "", f"{len(ratios)} of {len(rows)} files compile and run{mean}."])


def _child(file: Path, arguments: list[str]) -> Row:
    """Measure one file in a process of its own: a crash is one row."""
    command = [sys.executable, "-m", "tests.benchmarks.packaged", str(file), "--one", *arguments]
    environment = {**os.environ, "TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIME_LIMIT, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {TIME_LIMIT} s"}
    lines, said = done.stdout.strip().splitlines(), done.stderr.strip().splitlines()
    if done.returncode or not lines:
        return {"error": f"exit status {done.returncode}: {said[-1] if said else ''}"[:300]}
    return dict(json.loads(lines[-1]))


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.rpartition("=")
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.packaged",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--input", action="append", default=[], metavar="NAME=SHAPE")
    parser.add_argument("--value", action="append", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        shapes = [(name, tuple(map(int, dims.split(",")))) for name, dims in map(_pair, args.input)]
        values = {name: float(value) for name, value in map(_pair, args.value)}
        print(json.dumps(measure(args.files[0], shapes, values, args.seconds)))
        return
    passed = [f"--{kind}={text}" for kind in ("input", "value") for text in getattr(args, kind)]
    rows: dict[str, Row] = {}
    for file in args.files:
        rows[str(file)] = _child(file, [*passed, f"--seconds={args.seconds}"])
        print(file, json.dumps(rows[str(file)]), file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
