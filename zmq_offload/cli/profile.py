"""`zmq-offload profile`: show where the time of a model goes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zmq_offload.artifacts.manifest import MANIFEST
from zmq_offload.common.cores import usable_cores
from zmq_offload.common.extras import needs
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
        "zmq-offload profile model.onnx --input x=1,3,320,320", "zmq-offload profile dist/repository/ocr/1"
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL-OR-BUNDLE", help="a model file, repository/MODEL/VERSION, or a device bundle"
    )
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=DIMS", help="input shape in numbers, e.g. x=1,3,320,320"
    )
    parser.add_argument("--target", metavar="T", help="TVM target for a model file, a name or JSON (default: this CPU)")
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
        help="also measure both parts of every clean cut of a model file, for `zmq-offload plan --device-profile FILE`",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_verbose(parser)
    parser.set_defaults(run=stoppable(silent(run)))


def run(args: argparse.Namespace) -> int:
    # Before TVM starts its threads; by itself TVM takes half the cores of an x86 machine.
    if args.threads is not None:
        os.environ["TVM_NUM_THREADS"] = str(args.threads)
    threads = int(os.environ.setdefault("TVM_NUM_THREADS", str(usable_cores())))
    _check_arguments(args)
    with needs("compile"):
        import matplotlib  # noqa: F401  a missing package is reported before minutes of measuring

        from zmq_offload.charts import functions
        from zmq_offload.charts.style import save
        from zmq_offload.compile.onnx.shapes import parse_shapes
        from zmq_offload.profile import profiling, report
    order = profiling.Order(
        model=args.model,
        inputs=parse_shapes(args.input),
        target=args.target,
        threads=threads,
        repeat=args.repeat,
        broker=args.broker,
        timeout=args.timeout,
    )
    progress = Progress(3 + (args.save is not None), quiet=args.quiet)
    profile = profiling.take_profile(order, progress)
    if args.save is not None:
        _save_cuts(order, args.save, progress)
    # Files first: the reader of the output may close the pipe after a few lines.
    save(functions.draw(report.chart(profile, args.top)), args.output)
    for file, text in ((args.csv, report.to_csv), (args.json, report.to_json)):
        if file is not None:
            file.write_text(text(profile), encoding="utf-8")
    show(*report.describe(profile, args.top))
    print(f"\ndrawn in {args.output}")
    if args.save is not None:
        print(f"times of the cuts in {args.save}")
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    check_outputs(args.csv, args.json, args.save, args.output)
    if args.broker is not None and args.model.exists() and not (args.model / MANIFEST).is_file():
        raise InvalidArgument(f"--broker is for device bundles, and {args.model} is not one; leave it out")
    if args.save is not None and not args.model.is_file():
        raise InvalidArgument(f"--save is for model files, and {args.model} is not one; give the model file")
    if args.save is not None and args.target is not None:
        raise InvalidArgument("--save measures this machine as it is; leave --target out")


def _save_cuts(order: Order, file: Path, progress: Progress) -> None:
    """Measure the times of this machine that `zmq-offload plan` needs on another."""
    from zmq_offload.plan.halves import take_profile

    with progress.step("measure both parts of every cut") as say:
        take_profile(order.model, order.inputs, order.threads, order.repeat, say).write(file)
