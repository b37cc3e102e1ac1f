"""Facts about a model's kernels for a GPU, without one: `python -m tests.benchmarks.kernels --help`.

Each row is a function of the model: its rule, threads and blocks, shared memory, registers and spilled bytes of a
thread (with the extra cuda), bytes of global memory that its warps touch for each multiplication and addition, and
accesses of shared memory for each. They are counts from the code, where each condition holds; they are not times.
`--against dlight` adds TVM's own rules.

    python -m tests.benchmarks.kernels det.onnx --input x=1,3,320,320 --against dlight
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import tvm
from tvm import tirx
from tvm.ir.transform import Sequential

from tests.support.gpu_facts import SECTOR, facts, registers
from tests.support.gpu_kernels import lowered
from zmq_offload.compile.build import prepared
from zmq_offload.compile.cuda import rules
from zmq_offload.compile.cuda.names import gpu_target
from zmq_offload.compile.cuda.nvrtc import machine_code
from zmq_offload.compile.cuda.pipeline import graph_passes
from zmq_offload.compile.cuda.precision import half_products
from zmq_offload.compile.flops import count
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.onnx.shapes import parse_shapes
from zmq_offload.errors import FailedPrecondition

HEAD = ("RULE", "FUNCTION", "THREADS", "BLOCKS", "SHARED", "REGISTERS", "SPILLED", "BYTES/MAC", "SHARED/MAC")


def functions(
    model: str, shapes: Sequence[str], target: tvm.target.Target, half: bool
) -> Iterator[tuple[str, tirx.PrimFunc]]:
    """The fused functions of a model, by name."""
    mod = prepared(read_model(model).uncut(parse_shapes(shapes)))
    with target:
        mod = Sequential(graph_passes(target))(half_products(mod) if half else mod)
    for name, function in mod.functions.items():
        if isinstance(function, tirx.PrimFunc):
            yield str(name.name_hint), function


def of_dlight(function: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc:
    """A function as the first rule of dlight that can schedules it."""
    found = None
    for name, rule in rules.of_dlight():
        try:
            found = rule(function, target).with_attr(rules.RULE, name)
            rules.check_lowers(found, target)
        except Exception:
            continue
        return found
    raise ValueError("no rule of dlight takes the function")


Row = tuple[str, str, int, int, int, str, str, float, float]


def row(
    name: str, function: tirx.PrimFunc, scheduled: tirx.PrimFunc, target: tvm.target.Target
) -> tuple[Row, float, float]:
    """A row of the table, and the bytes and multiplications of the function."""
    kernels = lowered(scheduled, target)
    found = facts(kernels)
    macs = max(1.0, (count(function) or (0, 0))[0] / 2)
    try:
        used = registers(machine_code(kernels.source, str(target.attrs["arch"])))
    except FailedPrecondition:
        used = {}
    most, spilled = [str(max(used[f.kernel][n] for f in found)) for n in (0, 1)] if used else ["?", "?"]
    moved = sum(f.sectors for f in found) * SECTOR
    made: Row = (
        str(scheduled.attrs[rules.RULE]),
        name[:48],
        max(f.threads for f in found),
        sum(f.blocks for f in found),
        max(f.shared_bytes for f in found),
        most,
        spilled,
        moved / macs,
        sum(f.shared_accesses for f in found) / macs,
    )
    return made, moved, macs


def line(cells: Sequence[object]) -> str:
    texts = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
    return f"{texts[0]:24}{texts[1]:50}" + "".join(f"{text:>11}" for text in texts[2:])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=SHAPE")
    parser.add_argument("--target", default="cuda-sm80")
    parser.add_argument("--precision", choices=["float32", "float16"], default="float32")
    parser.add_argument("--against", choices=["dlight"], help="schedule each function by dlight's rules, too")
    args = parser.parse_args(argv)
    target = gpu_target(args.target)
    schedulers: list[Callable[[tirx.PrimFunc, tvm.target.Target], tirx.PrimFunc]] = [rules.schedule]
    if args.against:
        schedulers.append(of_dlight)
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    print(line(HEAD))
    for name, function in functions(args.model, args.input, target, args.precision == "float16"):
        own = ""
        for schedule in schedulers:
            made, moved, _ = row(name, function, schedule(function, target), target)
            own = own or made[0]
            print(line(made), flush=True)
            kind = "own rules" if schedule is rules.schedule else "dlight"
            for at, value in enumerate((1, moved, made[3])):
                sums[own, kind][at] += value
    print()
    print("Functions by their rule: how many, megabytes touched by warps, thread blocks")
    for (rule, kind), (many, moved, blocks) in sorted(sums.items()):
        print(f"{rule:24}{kind:12}{many:6.0f}{moved / 1e6:12.1f} MB{blocks:12.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
