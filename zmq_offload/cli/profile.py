"""`zmq-offload profile`."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmq_offload.artifacts.manifest import MANIFEST, Manifest
from zmq_offload.common.cores import usable_cores
from zmq_offload.common.extras import needs
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.compile.interrupt import stoppable
from zmq_offload.console import settings
from zmq_offload.console.outputs import check_outputs
from zmq_offload.console.progress import Progress
from zmq_offload.console.settings import add_option, add_optional_frontend, count, seconds, threads
from zmq_offload.console.silence import add_verbose, silent
from zmq_offload.console.tables import show
from zmq_offload.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from zmq_offload.client.sync import Client
    from zmq_offload.profile.result import Profile

PICTURE = "zmq-offload-profile.png"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "profile",
        help="show where the time of a model goes, function by function",
        description="Run an ONNX model (compiled whole), a version in a model repository or a device bundle here, and "
        "show the time of each fused function, its share, GFLOP/s and share of this machine's measured peak, as a "
        "table and as a picture. ONNX Runtime runs beside an ONNX model where it is installed.",
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL-OR-BUNDLE", help="an ONNX file, repository/MODEL/VERSION, or a device bundle"
    )
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=DIMS", help="shape of an input, in numbers: x=1,3,320,320"
    )
    parser.add_argument("--target", metavar="T", help="TVM target for an ONNX file, a name or JSON (default: this CPU)")
    parser.add_argument("--threads", type=threads, metavar="N", help="TVM's threads (default: the cores)")
    parser.add_argument("--repeat", type=count, default=20, metavar="N", help="runs to take medians of (default: 20)")
    parser.add_argument("--top", type=count, default=20, metavar="N", help="functions to show (default: 20)")
    add_optional_frontend(parser, "run a device bundle with a broker, not with zeros for what workers would answer")
    add_option(parser, "--timeout", seconds, 10.0, "seconds to wait for each answer of the broker", metavar="S")
    parser.add_argument("--csv", type=settings.path, metavar="F", help="write all functions as CSV")
    parser.add_argument("--json", type=settings.path, metavar="F", help="write everything as JSON")
    settings.add_picture(parser, PICTURE)
    parser.add_argument(
        "--save",
        type=settings.path,
        metavar="F",
        help="also measure both parts of every clean cut of an ONNX file, for `zmq-offload plan --device-profile F`",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_verbose(parser)
    parser.set_defaults(run=stoppable(silent(run)))


def run(args: argparse.Namespace) -> int:
    # Before TVM starts its threads; without it TVM takes half the cores of an x86 machine.
    if args.threads is not None:
        os.environ["TVM_NUM_THREADS"] = str(args.threads)
    cores = usable_cores()
    threads = int(os.environ.setdefault("TVM_NUM_THREADS", str(cores)))
    check_outputs(args.csv, args.json, args.save, args.output)
    if args.broker is not None and args.model.exists() and not (args.model / MANIFEST).is_file():
        raise InvalidArgument("--broker is for device bundles; nothing is offloaded here")
    if args.save is not None and not args.model.is_file():
        raise InvalidArgument("--save is for ONNX files: what was compiled has been cut already")
    if args.save is not None and args.target is not None:
        raise InvalidArgument("--save measures this machine as it is; leave --target out")
    with needs("compile"):
        import matplotlib  # noqa: F401  the first use would be minutes later

        from zmq_offload.charts import functions
        from zmq_offload.charts.style import save
        from zmq_offload.profile import report
    profile = take(args, threads)
    if args.save is not None:
        save_cuts(args, threads)
    # Before anything is said: who reads it may close the pipe after the first lines.
    save(functions.draw(report.chart(profile, args.top)), args.output)
    for file, text in ((args.csv, report.to_csv), (args.json, report.to_json)):
        if file is not None:
            file.write_text(text(profile), encoding="utf-8")
    show(*report.describe(profile, args.top))
    print(f"\ndrawn in {args.output}")
    if args.save is not None:
        print(f"times of the cuts in {args.save}")
    return 0


def save_cuts(args: argparse.Namespace, threads: int) -> None:
    """Measure what `zmq-offload plan` asks of another machine."""
    with needs("compile"):
        from zmq_offload.compile.shapes import parse_shapes
        from zmq_offload.plan.halves import take_profile
    with Progress(1, quiet=args.quiet).step("measure both parts of every cut"):
        take_profile(args.model, parse_shapes(args.input), threads, args.repeat).write(args.save)


def take(args: argparse.Namespace, threads: int) -> Profile:
    """Measure what the arguments say."""
    with needs("compile"):
        from zmq_offload.compile.shapes import parse_shapes
        from zmq_offload.compile.target import resolve_target
        from zmq_offload.profile import measure, peak, result, subject
    inputs = parse_shapes(args.input)
    progress = Progress(3, quiet=args.quiet)
    notes: list[str] = []
    with ExitStack() as stack:
        client = None
        if args.broker is not None:
            from zmq_offload.client.sync import Client

            client = stack.enter_context(Client(args.broker, timeout=args.timeout))
            check_served(client, Manifest.read(args.model), args.broker)
        with progress.step(f"{'compile' if args.model.is_file() else 'load'} {args.model}"):
            found = subject.open_subject(args.model, inputs, args.target, client)
        if found.offloaded and client is None:
            names = ", ".join(dict.fromkeys(found.offloaded.values()))
            notes.append(f"no --broker: {names} did not run, zeros were taken for what workers would answer")
        arrays = found.arrays(inputs)
        shapes = "; ".join(f"{s.name} {'x'.join(map(str, a.shape))}" for s, a in zip(found.inputs, arrays, strict=True))
        with progress.step("measure this machine's peak"):
            ceiling = peak.measured_peak(resolve_target(found.target), threads)
        reference = None
        if found.onnx is not None:
            feed = {spec.name: array for spec, array in zip(found.inputs, arrays, strict=True)}
            try:
                reference = measure.onnxruntime_caller(found.onnx, feed, threads)
            except ImportError:
                notes.append("ONNX Runtime is not installed, so nothing is compared with it")
        with progress.step(f"run it {args.repeat} times with and without the profiler"):
            measured = measure.measure(found, arrays, args.repeat, reference)
    if not found.flops:
        notes.append("the library was compiled without counts of its work: compile it again for GFLOP/s")
    return result.Profile(
        found.title, found.kind, shapes, found.target, threads, args.repeat, measured, ceiling, tuple(notes)
    )


def check_served(client: Client, bundle: Manifest, broker: str) -> None:
    """Raises NotFound for a model that a bundle calls and no worker serves, and what `Client.models` raises if nobody
    answers: before anything slow is done."""
    served = {(model["name"], model["version"]) for model in client.models()}
    names = sorted({name for name, _ in served})
    for part in bundle.offloaded:
        if part.version == "latest" and part.model not in names:
            raise NotFound(
                f"no worker at {broker} serves {part.model!r}, which the bundle calls; served are "
                f"{', '.join(names) or 'none'}{did_you_mean(part.model, names)}"
            )
        if part.version != "latest" and (part.model, part.version) not in served:
            raise NotFound(f"no worker at {broker} serves version {part.version} of {part.model!r}")
