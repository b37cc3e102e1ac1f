"""TVM with the CPU schedules against ONNX Runtime, same threads and process: `python -m tests.benchmarks.schedules`.

`--tuning-db DIR` adds the same network with the tuning results in DIR; `--tune TRIALS` tunes it first. Both runtimes
take turns in short rounds, so that other work on the machine affects both. ONNX Runtime's threads spin between calls
and would take a core from TVM, so its session lives only for its own round. (`--spin 0` turns spinning off instead, and
alternates at every call.)
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

from tests.benchmarks.models import CASES, Case


def timed(call: Callable[[], object], count: int, warm: int = 2) -> list[float]:
    """Milliseconds of each of `count` calls, after `warm` calls that do not count."""
    times = []
    for i in range(count + warm):
        start = time.perf_counter()
        call()
        if i >= warm:
            times.append((time.perf_counter() - start) * 1e3)
    return times


def prepared(case: Case) -> onnx.ModelProto:
    """The model with a fixed input shape and constant shapes folded."""
    from zmq_offload.compile.onnx.importer import simplify
    from zmq_offload.compile.onnx.shapes import set_input_shapes

    model = case.model()
    set_input_shapes(model, {model.graph.input[0].name: case.shape})
    return simplify(model)


def measure(case: Case, args: argparse.Namespace) -> list[str]:
    """One row of the table."""
    import onnxruntime
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    from zmq_offload.compile.build import prepared as ready
    from zmq_offload.compile.pipeline import cpu_pipeline
    from zmq_offload.compile.target import host_target
    from zmq_offload.compile.tuning.database import tuned_or_none
    from zmq_offload.compile.tuning.run import tune

    model = prepared(case)
    name = model.graph.input[0].name
    x = np.random.default_rng(0).standard_normal(case.shape).astype("float32")
    data = model.SerializeToString()

    def session() -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(args.spin))
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def compiled(pipeline: object) -> tuple[Callable[[], object], float]:
        mod = from_onnx(model, shape_dict={name: list(case.shape)}, keep_params_in_input=False)
        start = time.perf_counter()
        mod = mod if pipeline == "default" else ready(mod)
        executable = tvm.compile(mod, target, relax_pipeline=pipeline)
        seconds = time.perf_counter() - start
        vm, tensor = relax.VirtualMachine(executable, tvm.cpu()), tvm.runtime.tensor(x)
        return (lambda: vm["main"](tensor)), seconds

    target = host_target()
    run, seconds = compiled(cpu_pipeline(target))
    tuned = None
    if args.tuning_db is not None:
        if args.tune:
            mod = from_onnx(model, shape_dict={name: list(case.shape)}, keep_params_in_input=False)
            done = tune([(ready(mod), target)], args.tuning_db, args.tune, lambda p: print(p, file=sys.stderr))
            print(f"{case.name}: {done}", file=sys.stderr, flush=True)
        tuned, _ = compiled(cpu_pipeline(target, tuned_or_none(args.tuning_db, target)))
    default, default_seconds = compiled("default") if args.default else (None, float("nan"))
    reference = session()
    expected, got = reference.run(None, {name: x})[0], run()
    result = (got if hasattr(got, "numpy") else got[0]).numpy()
    error = float(np.abs(result - expected).max() / max(1e-9, float(np.abs(expected).max())))
    del reference
    ours, theirs, best = [], [], []
    one = timed(run, 2)[-1]
    count = max(2, min(30, int(args.seconds * 1e3 / max(one, 0.05) / args.rounds / 2)))
    for _ in range(args.rounds):
        ours += timed(run, count)
        if tuned is not None:
            best += timed(tuned, count)
        other = session()
        theirs += timed(lambda other=other: other.run(None, {name: x}), count)
        del other
    median = statistics.median
    row = [case.name, f"{median(ours):.2f}", f"{median(theirs):.2f}", f"{median(ours) / median(theirs):.2f}"]
    row += [
        f"{min(ours):.2f}",
        f"{min(theirs):.2f}",
        f"{min(ours) / min(theirs):.2f}",
        f"{error:.0e}",
        f"{seconds:.1f}",
    ]
    if tuned is not None:
        row += [f"{median(best):.2f}", f"{median(best) / median(theirs):.2f}"]
    if default is not None:
        row += [f"{default_seconds:.1f}", f"{median(timed(default, 3, 1)):.1f}"]
    return row


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.schedules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spin", type=int, default=1, choices=(0, 1), help="let ONNX Runtime's threads spin")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="time for the calls of one case, roughly")
    parser.add_argument("--default", action="store_true", help="also TVM's default pipeline (slow)")
    parser.add_argument("--tuning-db", type=Path, metavar="DIR", help="add a column with the tuning results in DIR")
    parser.add_argument("--tune", type=int, metavar="TRIALS", default=0, help="tune first")
    args = parser.parse_args(argv)
    os.environ["TVM_NUM_THREADS"] = str(args.threads)
    head = ["network", "TVM ms", "ORT ms", "ratio", "TVM min", "ORT min", "ratio", "error", "compile s"]
    head += ["tuned ms", "tuned ratio"] if args.tuning_db else []
    head += ["default s", "default ms"] if args.default else []
    print("| " + " | ".join(head) + " |", "|" + "---|" * len(head), sep="\n", flush=True)
    for case in CASES:
        if args.only.lower() in case.name.lower():
            try:
                print("| " + " | ".join(measure(case, args)) + " |", flush=True)
            except FileNotFoundError as reason:
                print(f"| {case.name} | skipped: {reason} |", flush=True)


if __name__ == "__main__":
    main()
