"""`zmq-offload profile`: show where the time of a model goes."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zmq_offload.artifacts.manifest import MANIFEST
from zmq_offload.common.cores import usable_cores
from zmq_offload.common.extras import needs
from zmq_offload.common.units import counted
from zmq_offload.compile.interrupt import stoppable
from zmq_offload.console import settings
from zmq_offload.console.outputs import check_outputs
from zmq_offload.console.parser import Parser
from zmq_offload.console.progress import Progress
from zmq_offload.console.settings import add_option, add_optional_frontend, count, seconds, threads
from zmq_offload.console.silence import add_verbose, silent
from zmq_offload.console.tables import show
from zmq_offload.errors import InvalidArgument

if TYPE_CHECKING:
    from zmq_offload.profile.profiling import Order

PICTURE = "zmq-offload-profile.png"


def add_options(parser: Parser) -> None:
    parser.description = (
        "Run a model file (ONNX, .pt2 or .tflite, compiled whole), a version in a model repository or a device bundle "
        "on this machine. Show the time of each fused function, its share, GFLOP/s and share of this machine's "
        "measured peak, as a table and as a picture. ONNX Runtime, where installed, runs an ONNX file, too."
    )
    parser.set_example(
        "zmq-offload profile model.onnx --input x=1,3,320,320",
        "zmq-offload profile dist/repository/ocr/1",
        "zmq-offload profile model.onnx --input x=1,3,320,320 \\\n    --target raspberry-pi-4 --parts pi-parts",
        "zmq-offload profile pi-parts --save pi.json",
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL-OR-BUNDLE",
        help="a model file, repository/MODEL/VERSION, a device bundle, or a folder that --parts wrote",
    )
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=DIMS", help="input shape in numbers, e.g. x=1,3,320,320"
    )
    parser.add_argument(
        "--target",
        metavar="T",
        help="target for a model file, a name of `compile --list-targets` or TVM's JSON (default: this CPU)",
    )
    parser.add_argument("--split", metavar="NAME", help="of an adaptive device bundle: which of its splits to run")
    parser.add_argument("--threads", type=threads, metavar="N", help="TVM threads (default: all cores)")
    parser.add_argument("--repeat", type=count, default=20, metavar="N", help="runs for each median (default: 20)")
    parser.add_argument("--top", type=count, default=20, metavar="N", help="functions to show (default: 20)")
    add_optional_frontend(parser, "send a device bundle's calls to a broker; without it, replies are zeros")
    add_option(parser, "--timeout", seconds, 10.0, "maximum seconds for each reply of the broker", metavar="S")
    parser.add_argument("--csv", type=settings.path, metavar="FILE", help="write all functions as CSV")
    parser.add_argument("--json", type=settings.path, metavar="FILE", help="write the whole profile as JSON")
    settings.add_picture(parser, PICTURE)
    parser.add_argument(
        "--save",
        type=settings.path,
        metavar="FILE",
        help="also measure both parts of every clean cut of a model file, for `zmq-offload plan --device-profile "
        "FILE`; of a folder that --parts wrote, only that",
    )
    parser.add_argument(
        "--parts",
        type=settings.path,
        metavar="DIR",
        help="only compile both parts of every clean cut of a model file for --target into the folder DIR. Carry it "
        "to that machine, which needs no compiler: `zmq-offload profile DIR --save FILE`",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_verbose(parser)
    parser.set_defaults(run=stoppable(run))


def run(args: argparse.Namespace) -> int:
    # Before TVM starts its threads; by itself TVM takes half the cores of an x86 machine.
    if args.threads is not None:
        os.environ["TVM_NUM_THREADS"] = str(args.threads)
    threads = int(os.environ.setdefault("TVM_NUM_THREADS", str(usable_cores())))
    _check_arguments(args)
    if _has_parts(args.model):
        return _measure_parts(args, threads)
    return silent(_write_parts if args.parts is not None else _profile)(args)


def _profile(args: argparse.Namespace) -> int:
    # A missing package is reported before minutes of measuring. What is compiled already is measured without them.
    drawn = args.model.is_file() or importlib.util.find_spec("matplotlib") is not None
    with needs("compile" if args.model.is_file() else "tvm"):
        if args.model.is_file():
            import matplotlib  # noqa: F401
            import onnx  # noqa: F401

        from zmq_offload.charts import functions
        from zmq_offload.charts.style import save
        from zmq_offload.compile.onnx.shapes import parse_shapes
        from zmq_offload.profile import profiling, report
    order = profiling.Order(
        model=args.model,
        inputs=parse_shapes(args.input),
        target=args.target,
        threads=int(os.environ["TVM_NUM_THREADS"]),
        repeat=args.repeat,
        broker=args.broker,
        timeout=args.timeout,
        split=args.split,
    )
    progress = Progress(3 + (args.save is not None), quiet=args.quiet)
    profile = profiling.take_profile(order, progress)
    if args.save is not None:
        _save_cuts(order, args.save, progress)
    # Files first: the reader of the output may close the pipe after a few lines.
    if drawn:
        save(functions.draw(report.chart(profile, args.top)), args.output)
    for file, text in ((args.csv, report.to_csv), (args.json, report.to_json)):
        if file is not None:
            file.write_text(text(profile), encoding="utf-8")
    show(*report.describe(profile, args.top))
    print(f"\ndrawn in {args.output}" if drawn else "\nnot drawn, since that needs the extra compile")
    if args.save is not None:
        print(f"times of the cuts in {args.save}")
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    check_outputs(args.csv, args.json, args.save, args.output)
    if args.broker is not None and args.model.exists() and not (args.model / MANIFEST).is_file():
        raise InvalidArgument(f"--broker is for device bundles, and {args.model} is not one; leave it out")
    if args.parts is not None and not args.model.is_file():
        raise InvalidArgument(f"--parts is for model files, and {args.model} is not one; give the model file")
    if _has_parts(args.model):
        if args.save is None:
            raise InvalidArgument(f"{args.model} has parts to measure; give --save FILE for their times")
        return
    if args.parts is not None and args.save is not None:
        raise InvalidArgument("--parts measures nothing; give --save where the parts run")
    if args.save is not None and not args.model.is_file():
        raise InvalidArgument(f"--save is for model files, and {args.model} is not one; give the model file")
    if args.save is not None and args.target is not None:
        raise InvalidArgument("--save measures this machine as it is; leave --target out")


def _save_cuts(order: Order, file: Path, progress: Progress) -> None:
    """Measure the times of this machine that `zmq-offload plan` needs on another."""
    from zmq_offload.plan.halves import take_profile

    with progress.step("measure both parts of every cut") as say:
        take_profile(order.model, order.inputs, order.threads, order.repeat, say).write(file)


def _has_parts(folder: Path) -> bool:
    return (folder / "parts.json").is_file()


def _write_parts(args: argparse.Namespace) -> int:
    with needs("compile"):
        from zmq_offload.compile.onnx.shapes import parse_shapes
        from zmq_offload.plan.halves import build_parts
    with Progress(1, quiet=args.quiet).step("compile both parts of every cut") as say:
        build_parts(args.model, parse_shapes(args.input), args.target, args.parts, say)
    show(f"parts in {args.parts}, with all weights of the model; on the device run:")
    show(f"  zmq-offload profile {args.parts.name} --save FILE")
    return 0


def _measure_parts(args: argparse.Namespace, threads: int) -> int:
    with needs("tvm"):
        from zmq_offload.plan.parts import measure_parts
    with Progress(1, quiet=args.quiet).step("measure both parts of every cut") as say:
        found = measure_parts(args.model, threads, args.repeat, say)
    found.write(args.save)
    show(f"{found.model.file} takes {found.times.whole * 1e3:.3g} ms on {found.machine}, {counted(threads, 'thread')}")
    show(f"times of {counted(len(found.points) - 2, 'cut')} in {args.save}")
    return 0
