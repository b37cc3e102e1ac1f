"""Many networks beside ONNX Runtime: `python -m tests.benchmarks.bench_models`.

Builds each network, compiles it without tuning, and runs it in turns with ONNX Runtime, first with one thread and then
with two. Each compiler and each pair of runtimes has a process of its own. Results go to a JSON file, which also lets a
run that was interrupted go on; the table and the picture are made from it.

- With one thread the ratio is of CPU times, the minimum of many calls: other work on the machine hardly changes it.
- With two threads the ratio is of elapsed times, because TVM's threads spin while they wait. ONNX Runtime's do not
  here (`session.intra_op.allow_spinning=0`).
- `--target x86-64-v3` compiles for AVX2 on a CPU with AVX-512. ONNX Runtime has no such switch and uses all that the
  CPU has.
- Peak memory is that of the process that compiles, imports included.

The networks need torch, torchvision, transformers and onnxscript. `--python` names the interpreter that has them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.benchmarks.networks import NETWORKS, SHAPES, Network, sample

Row = dict[str, Any]
THREADS = (1, 2)
TIME_LIMIT = 600
"""Seconds after which a step of one network is given up."""


def compile_one(file: Path, shapes: dict[str, tuple[int, ...]], library: Path, target: str, default: bool) -> Row:
    """Compile a file; seconds of each step, and MB of memory. With `default`, by TVM's default pipeline, too."""
    import tvm

    from zmq_offload.compile.build import build_library
    from zmq_offload.compile.onnx.importer import import_uncut
    from zmq_offload.compile.target import resolve_target

    clock = time.perf_counter
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chosen = resolve_target({"kind": "llvm", "mcpu": target, "num-cores": 2} if target else None)
    begin = clock()
    mod = import_uncut(file, shapes)
    imported = clock()
    build_library(mod, library, chosen)
    built = clock()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {
        "import s": imported - begin,
        "build s": built - imported,
        "start MB": before / 1e3,
        "peak MB": peak / 1e3,
        "weights MB": sum(math.prod(w.dims) * _bytes(w) for w in onnx.load(file).graph.initializer) / 1e6,
    }
    if default:
        begin = clock()
        with chosen:
            tvm.compile(mod, chosen)
        row["default build s"] = clock() - begin
    return row


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def run_one(file: Path, shapes: dict[str, tuple[int, ...]], library: Path, threads: int, seconds: float) -> Row:
    """Run a compiled file and ONNX Runtime in turns; milliseconds of the fastest calls, and the largest difference."""
    os.environ["TVM_NUM_THREADS"] = str(threads)
    import onnxruntime
    import tvm

    from zmq_offload.runtime.machine import load_library, virtual_machine

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = sample(onnx.load(file), shapes)
    main = virtual_machine(load_library(library))["main"]
    tensors = [tvm.runtime.tensor(value) for value in inputs.values()]

    def ours() -> Any:
        return main(*tensors)

    def theirs() -> Any:
        return session.run(None, inputs)

    result, expected = ours(), theirs()
    results = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    off = max(
        _difference(r.numpy(), e)
        for r, e in zip(results, expected, strict=True)
        if isinstance(e, np.ndarray) and e.size
    )
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["ours"]) < 5:
        for name, call in (("ours", ours), ("theirs", theirs)):
            call()  # the caches hold what the other left
            times[name].append(_timed(call, clock))
    return {
        f"ours ms {threads}": min(times["ours"]) * 1e3,
        f"ort ms {threads}": min(times["theirs"]) * 1e3,
        "off": off,
    }


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    begin = clock()
    call()
    return clock() - begin


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    if ours.shape != theirs.shape:
        return math.inf
    a, b = ours.astype("float64"), theirs.astype("float64")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def _child(step: str, *arguments: str) -> Row:
    """Run one step in a process of its own, and return its row or its error."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_models", "--step", step, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"{step}: more than {TIME_LIMIT} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        return {"error": f"{step}: {said[-1] if said else f'exit status {done.returncode}'}"[:300]}
    return dict(json.loads(lines[-1]))


def measure(network: Network, args: argparse.Namespace) -> Row:
    """One row of the results, or what failed."""
    row: Row = {"family": network.family}
    try:
        file = network.build(args.folder, args.python)
    except Exception as error:
        return {**row, "error": f"export: {error}"[:300]}
    shapes = json.dumps(SHAPES.get(network.name, {}))
    library = args.folder / f"{network.name}.so"
    row |= _child("compile", str(file), shapes, str(library), args.target, "default" if args.default else "")
    for threads in THREADS:
        if "error" not in row:
            row |= _child("run", str(file), shapes, str(library), str(threads), str(args.seconds))
    library.unlink(missing_ok=True)
    return row


def _ratio(row: Row, threads: int) -> float | None:
    ours = row.get(f"ours ms {threads}")
    return None if ours is None else float(ours / row[f"ort ms {threads}"])


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def table(rows: dict[str, Row]) -> str:
    """A line for each network, and the bars of the whole."""
    lines = [
        "| network | family | ours, ms | ONNX Runtime, ms | ratio | 2 threads: ours, ms | ONNX Runtime, ms | ratio "
        "| off by | compile s | of TVM's default | peak MB | weights MB |",
        "|---|---|" + "---:|" * 11,
    ]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | {row['family']} | {row['error'].replace('|', '/')} |" + " |" * 10)
            continue
        cells = []
        for threads in THREADS:
            cells += [
                f"{row[f'ours ms {threads}']:.2f}",
                f"{row[f'ort ms {threads}']:.2f}",
                f"{_ratio(row, threads):.2f}",
            ]
        compiled = row["import s"] + row["build s"]
        default = f"{row['build s'] / row['default build s']:.1f}x" if "default build s" in row else ""
        cells += [f"{row['off']:.1e}", f"{compiled:.1f}", default, f"{row['peak MB']:.0f}", f"{row['weights MB']:.0f}"]
        lines.append(f"| {name} | {row['family']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(rows: dict[str, Row]) -> str:
    """Geometric means and the worst of each column."""
    good = {name: row for name, row in rows.items() if "error" not in row}
    lines = [f"{len(good)} of {len(rows)} networks of {len({r['family'] for r in rows.values()})} families."]
    for threads in THREADS:
        ratios = {name: r for name, row in good.items() if (r := _ratio(row, threads)) is not None}
        if ratios:
            slow = ", ".join(f"{n} {r:.2f}" for n, r in sorted(ratios.items(), key=lambda x: -x[1]) if r > 1.3)
            lines.append(
                f"{threads} thread{'s' * (threads > 1)}: geometric mean {geometric_mean(ratios.values()):.2f}, "
                f"largest {max(ratios.values()):.2f}" + (f"; above 1.3: {slow}" if slow else "")
            )
    if good:
        longest = max(good, key=lambda n: good[n]["import s"] + good[n]["build s"])
        row = good[longest]
        lines.append(f"longest compile: {longest}, {row['import s'] + row['build s']:.1f} s")
        above = [n for n, r in good.items() if r["peak MB"] > 6 * r["weights MB"] + 400]
        lines.append(f"peak memory above 6 times the weights + 400 MB: {', '.join(above) or 'none'}")
    return "\n".join(lines)


def draw(rows: dict[str, Row], path: Path, title: str) -> None:
    """A bar for each network: the ratio with one thread, colored by family."""
    from zmq_offload.charts.bars import Bars, draw
    from zmq_offload.charts.style import save

    names = [name for name, row in rows.items() if "error" not in row]
    families = list(dict.fromkeys(rows[name]["family"] for name in names))
    panels = {f"{n} thread{'s' * (n > 1)}": {name: _ratio(rows[name], n) or 0.0 for name in names} for n in THREADS}
    groups = {name: families.index(rows[name]["family"]) for name in names}
    save(draw(Bars(title, panels, names, groups, "{:.2f}".format)), path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="networks or families; default: all")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch and transformers")
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/zmq-offload-networks"), help="where ONNX files are kept"
    )
    parser.add_argument("--results", type=Path, help="JSON file; networks that it has are not measured again")
    parser.add_argument("--target", default="", help="a CPU of LLVM's, such as x86-64-v3; default: this machine's")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each network and number of threads")
    parser.add_argument("--default", action="store_true", help="compile with TVM's default pipeline, too")
    parser.add_argument("-o", "--output", type=Path, help="a picture, .png or .svg")
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = json.loads(args.results.read_text()) if args.results and args.results.exists() else {}
    wanted = [n for n in NETWORKS if not args.names or n.name in args.names or n.family in args.names]
    for network in wanted:
        if network.name not in rows:
            rows[network.name] = measure(network, args)
            print(network.name, json.dumps(rows[network.name]), file=sys.stderr, flush=True)
            if args.results:
                args.results.write_text(json.dumps(rows, indent=1))
    shown = {n.name: rows[n.name] for n in wanted}
    print(table(shown), summary(shown), sep="\n\n")
    if args.output:
        draw(shown, args.output, f"Time beside ONNX Runtime, {args.target or 'this CPU'} (below 1: faster)")


def _step(step: str, file: str, shapes: str, library: str, *rest: str) -> None:
    known = {name: tuple(shape) for name, shape in json.loads(shapes).items()}
    if step == "compile":
        row = compile_one(Path(file), known, Path(library), rest[0], bool(rest[1]))
    else:
        row = run_one(Path(file), known, Path(library), int(rest[0]), float(rest[1]))
    print(json.dumps(row))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        _step(*sys.argv[2:])
    else:
        main()
