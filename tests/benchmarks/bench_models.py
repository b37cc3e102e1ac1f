"""Many networks beside ONNX Runtime: `python -m tests.benchmarks.bench_models`.

Builds each network, compiles it without tuning for this CPU and for x86-64-v3 (AVX2), and runs it in turns with ONNX
Runtime, first with one thread and then with two. Each compiler and each pair of runtimes has a process of its own.
Results go to a JSON file, which also lets a run that was interrupted go on; `model_report` makes the table and the
picture from it, and `--write docs` puts both into docs/compute.md.

- With one thread the ratio is of CPU times, the minimum of many calls: other work on the machine hardly changes it.
- With two threads the ratio is of elapsed times, because TVM's threads spin while they wait. ONNX Runtime's do not
  here (`session.intra_op.allow_spinning=0`). The machine has to be quiet.
- ONNX Runtime uses all that the CPU has; no option holds it to AVX2. `--onnxruntime x86-64-v3=FOLDER` imports another
  build of it, for the runs of that target.
- Seconds of compiling are CPU time, the linker's included. Peak memory is that of the process, imports included.

The networks need torch, torchvision, transformers and onnxscript. `--python` names the interpreter that has them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.benchmarks.model_report import THREADS, Row, draw, summary, table, write_page
from tests.benchmarks.networks import NETWORKS, SHAPES, Network, sample

TIME_LIMIT = 600
"""Seconds after which a step of one network is given up."""


def compile_one(file: Path, shapes: dict[str, tuple[int, ...]], library: Path, target: str, default: bool) -> Row:
    """Compile a file; seconds of each step, and MB of memory. With `default`, by TVM's default pipeline, too."""
    import tvm

    from zmq_offload.compile.build import build_library
    from zmq_offload.compile.onnx.importer import import_uncut
    from zmq_offload.compile.target import resolve_target

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chosen = resolve_target({"kind": "llvm", "mcpu": target, "num-cores": 2} if target else None)
    begin = _cpu_seconds()
    mod = import_uncut(file, shapes)
    imported = _cpu_seconds()
    build_library(mod, library, chosen)
    built = _cpu_seconds()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {
        "import s": imported - begin,
        "build s": built - imported,
        "start MB": before / 1e3,
        "peak MB": peak / 1e3,
        "weights MB": _weight_bytes(onnx.load(file)) / 1e6,
    }
    if default:
        begin = _cpu_seconds()
        with chosen:
            tvm.compile(mod, chosen).export_library(str(library.with_suffix(".default.so")))
        row["default build s"] = _cpu_seconds() - begin
        library.with_suffix(".default.so").unlink()
    return row


def _cpu_seconds() -> float:
    """Of this process and of the linkers that it started."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def _weight_bytes(model: onnx.ModelProto) -> int:
    tensors = [
        *model.graph.initializer,
        *(a.t for n in model.graph.node for a in n.attribute if n.op_type == "Constant"),
    ]
    return sum(
        math.prod(t.dims) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in tensors if t.data_type
    )


def run_one(file: Path, shapes: dict[str, tuple[int, ...]], library: Path, threads: int, seconds: float) -> Row:
    """Run a compiled file and ONNX Runtime in turns; milliseconds of the fastest calls, and the largest difference as a
    share of `largest`, the largest value of that result."""
    os.environ["TVM_NUM_THREADS"] = str(threads)
    import onnxruntime
    import tvm

    from zmq_offload.runtime.machine import load_library
    from zmq_offload.runtime.tvm_library import virtual_machine

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
    off, largest = max(
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
        "largest": largest,
    }


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    begin = clock()
    call()
    return clock() - begin


def _difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The largest difference, relative to the largest value, and that value."""
    if ours.shape != theirs.shape:
        return math.inf, 1.0
    a, b = ours.astype("float64"), theirs.astype("float64")
    largest = max(float(np.abs(b).max()), 1e-30)
    return float(np.abs(a - b).max()) / largest, largest


def _child(step: str, *arguments: str, first_on_path: str = "") -> Row:
    """Run one step in a process of its own, and return its row or its error."""
    path = os.pathsep.join(filter(None, (first_on_path, os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "tests.benchmarks.bench_models", "--step", step, *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIME_LIMIT,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return {"error": f"{step}: more than {TIME_LIMIT} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        return {"error": f"{step}: {said[-1] if said else f'exit status {done.returncode}'}"[:300]}
    return dict(json.loads(lines[-1]))


def measure(network: Network, target: str, args: argparse.Namespace) -> Row:
    """One row of the results, or what failed."""
    row: Row = {"family": network.family}
    try:
        file = network.build(args.folder, args.python)
    except Exception as error:
        return {**row, "error": f"export: {error}"[:300]}
    shapes = json.dumps(SHAPES.get(network.name, {}))
    library = args.folder / f"{network.name}.so"
    default = "default" if args.default and target == args.target[0] else ""
    row |= _child("compile", str(file), shapes, str(library), "" if target == _host() else target, default)
    for threads in THREADS:
        if "error" not in row:
            step = ("run", str(file), shapes, str(library), str(threads), str(args.seconds))
            row |= _child(*step, first_on_path=args.onnxruntime.get(target, ""))
    library.unlink(missing_ok=True)
    return row


def _host() -> str:
    from tvm.target.codegen import llvm_get_system_cpu

    return str(llvm_get_system_cpu())


def _cpu() -> str:
    """The name of this machine's CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "an unknown CPU")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_models", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="networks or families; default: all")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch and transformers")
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/zmq-offload-networks"), help="where ONNX files are kept"
    )
    parser.add_argument("--results", type=Path, help="JSON file; networks that it has are not measured again")
    parser.add_argument(
        "--target", action="append", help="a CPU of LLVM's; again for more; default: this machine's and x86-64-v3"
    )
    parser.add_argument(
        "--onnxruntime", action="append", default=[], metavar="TARGET=FOLDER", help="import ONNX Runtime from there"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="for each network and number of threads")
    parser.add_argument(
        "--default", action="store_true", help="compile with TVM's default pipeline, too (first target)"
    )
    parser.add_argument("--write", type=Path, metavar="docs", help="folder of compute.md: put table and picture there")
    parser.add_argument("-o", "--output", type=Path, help="a picture, .png or .svg")
    args = parser.parse_args()
    args.target = args.target or [_host(), "x86-64-v3"]
    args.onnxruntime = dict(each.split("=", 1) for each in args.onnxruntime)
    return args


def main() -> None:
    args = _arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Row]] = {}
    if args.results and args.results.exists():
        results = json.loads(args.results.read_text())
    wanted = [n for n in NETWORKS if not args.names or n.name in args.names or n.family in args.names]
    for network in wanted:
        for target in args.target:
            rows = results.setdefault(target, {})
            if network.name not in rows:
                rows[network.name] = measure(network, target, args)
                print(network.name, target, json.dumps(rows[network.name]), file=sys.stderr, flush=True)
                if args.results:
                    args.results.write_text(json.dumps(results, indent=1))
    shown = {target: {n.name: results[target][n.name] for n in wanted} for target in args.target}
    print(summary(shown), table(shown), sep="\n\n")
    if args.output:
        draw(shown, args.output)
    if args.write:
        write_page(shown, args.write, _cpu())


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
