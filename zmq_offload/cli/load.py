"""`zmq-offload load`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmq_offload.common.cores import usable_cores
from zmq_offload.common.units import counted
from zmq_offload.console.interrupts import raising_ctrl_c
from zmq_offload.console.outputs import check_writable
from zmq_offload.console.progress import Progress
from zmq_offload.console.settings import (
    add_frontend,
    add_option,
    bytes_,
    checked,
    count,
    path,
    processes,
    seconds,
    seed,
)
from zmq_offload.console.tables import Lines, show
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.loadgen.levels import Level, concurrencies, rates
from zmq_offload.protocol import limits

if TYPE_CHECKING:
    from zmq_offload.loadgen.stats import Summary

levels_closed = checked(concurrencies, bool, "a list of concurrencies")
levels_open = checked(rates, bool, "rates")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "load",
        help="put a model under load: throughput, latency, and where the time goes",
        description="Send requests for a model, level after level, until three windows in a row agree within 10 %. "
        "Latency is split into client (with the way to the broker), queue, compute, and network (broker to worker and "
        "back). Ctrl-C ends it and keeps what was measured.",
        epilog="example: zmq-offload load --model echo --shape x=1,3,320,320:FP32 --concurrency 1,4,16",
    )
    add_frontend(parser, several=True)
    parser.add_argument("--model", metavar="NAME", help="the model (default with --bundle: its first offloaded part)")
    parser.add_argument("--version", type=count, metavar="N", help="its version (default: the latest that is served)")
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency",
        type=levels_closed,
        default=[Level(concurrency=1)],
        metavar="N,...",
        help="closed loop: number of requests in flight (default: 1)",
    )
    load.add_argument("--rate", type=levels_open, metavar="FROM:TO:STEP", help="open loop: requests begun a second")
    parser.add_argument(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="when an open loop sends (default: poisson)",
    )
    parser.add_argument("--processes", type=processes, default=1, metavar="N", help="sending processes (default: 1)")
    parser.add_argument(
        "--duration", type=seconds, default=10.0, metavar="S", help="maximum seconds per level (default: 10)"
    )
    parser.add_argument(
        "--window",
        type=checked(float, lambda s: 0.01 <= s < 1e6, "a time in seconds, from 0.01"),
        metavar="S",
        help="seconds per window (default: 1, or a third of a --duration below 3)",
    )
    what = parser.add_argument_group("what is sent", "random data of the served model's signature, unless")
    what.add_argument("--input", action="append", default=[], metavar="NAME=FILE.npy", help="a tensor from a file")
    what.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=EXTENTS[:DATATYPE]",
        help="of a symbolic input, or of each tensor for a model that takes any: x=1,3,320,320:FP32",
    )
    what.add_argument(
        "--bundle", type=path, metavar="DIR", help="take the signature of a device bundle's offloaded part"
    )
    what.add_argument("--seed", type=seed, default=0, metavar="N", help="of random data and arrivals (default: 0)")
    add_option(parser, "--timeout", seconds, 10.0, "seconds a request may take", metavar="S")
    add_option(parser, "--max-frame-bytes", bytes_, limits.MESSAGE_BYTES, "largest tensor, in bytes", metavar="N")
    parser.add_argument(
        "--priority",
        type=checked(int, lambda n: abs(n) <= limits.PRIORITY, f"a whole number from -{limits.PRIORITY} to "
        f"{limits.PRIORITY}"), default=0, metavar="N", help="of all requests (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--verify", action="store_true", help="compare each result with --expect, or with the first result"
    )
    parser.add_argument("--expect", action="append", default=[], metavar="NAME=FILE.npy", help="an expected output")
    for kind in ("csv", "json", "png", "html"):
        parser.add_argument(f"--{kind}", type=path, metavar="FILE", help=f"write the results as {kind.upper()}")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    from zmq_offload.loadgen import report
    from zmq_offload.loadgen.measure import Interrupted, measure

    window = args.window or min(1.0, args.duration / 3)
    if window > args.duration:
        args.usage_error(f"--window {window:g} is longer than --duration {args.duration:g}")
    files = _files(args)
    plan = _plan(args)
    levels: Sequence[Level] = args.rate or args.concurrency
    table = Lines(*report.columns(levels))
    table.head()

    def finished(summary: Summary) -> None:
        table.row(report.row(summary), wrong=bool(summary.errors))

    interrupted = False
    try:
        with raising_ctrl_c():
            summaries = measure(
                plan,
                levels,
                processes=args.processes,
                window=window,
                duration=args.duration,
                progress=Progress(len(levels), quiet=args.quiet),
                finished=finished,
            )
    except Interrupted as stopped:
        interrupted, summaries = True, stopped.summaries
    if table.hidden:
        print(f"(a wider terminal also shows {', '.join(table.hidden)})")
    show(report.UNITS, *report.notes(summaries), *report.error_lines(summaries))
    title = f"{plan.model}: {sum(a.nbytes for a in plan.inputs.values()):,} bytes a request"
    senders = counted(args.processes, "sending process", "es")
    setting = f"{senders} on a machine of {usable_cores()} CPUs; broker {', '.join(plan.brokers)}"
    _write(files if summaries else {}, report.Report(title, setting, summaries))
    if interrupted:
        print(f"zmq-offload: interrupted: {len(summaries)} of {len(levels)} levels were measured", file=sys.stderr)
        return 130
    return int(any(summary.requests == 0 or report.wrong(summary) for summary in summaries))


def _files(args: argparse.Namespace) -> dict[str, Path]:
    """Where to write what; what cannot be written is found now, not after minutes of measuring."""
    from zmq_offload.loadgen import report

    files: dict[str, Path] = {kind: getattr(args, kind) for kind in report.WRITERS if getattr(args, kind) is not None}
    if "png" in files or "html" in files:
        report.check_charts()
    for kind, file in files.items():
        same = next((k for k, f in files.items() if k != kind and os.path.realpath(f) == os.path.realpath(file)), None)
        if same is not None and (file.is_file() or not file.exists()):
            raise InvalidArgument(f"--{kind} and --{same} are the same file, {file}")
        check_writable(file)
    return files


def _write(files: dict[str, Path], whole: Any) -> None:
    """Write all that can be written. Raises FailedPrecondition for the first that cannot, after the others."""
    from zmq_offload.loadgen import report

    def failure(kind: str, file: Path) -> str | None:
        try:
            report.WRITERS[kind](file, whole)
        except OSError as error:
            return f"{file} cannot be written: {error.strerror or error}"
        return None

    failures = [said for kind, file in files.items() if (said := failure(kind, file)) is not None]
    if failures:
        raise FailedPrecondition("; ".join(failures))


def _plan(args: argparse.Namespace) -> Any:
    """What is to be sent. One request is made here, so that what cannot work fails now and in one line."""
    from zmq_offload.client.sync import Client
    from zmq_offload.loadgen.inputs import (
        check_expected,
        make_inputs,
        once,
        parse_file,
        parse_shape,
        served_signature,
    )
    from zmq_offload.loadgen.sender import SendPlan

    files = once("--input", map(parse_file, args.input))
    described = map(parse_shape, args.shape)
    shapes = once("--shape", ((name, (datatype, shape)) for name, datatype, shape in described))
    expected = once("--expect", map(parse_file, args.expect))
    if expected and not args.verify:
        raise InvalidArgument("--expect says what --verify compares with; give both")
    model, version = args.model, args.version
    with Client(args.broker, timeout=args.timeout, max_frame_bytes=args.max_frame_bytes) as client:
        if args.bundle is not None:
            from zmq_offload.artifacts.manifest import Manifest

            parts = Manifest.read(args.bundle).offloaded
            part = next((p for p in parts if model in (None, p.model)), None)
            if part is None:
                raise InvalidArgument(f"{args.bundle} offloads {', '.join(p.model for p in parts) or 'nothing'}")
            model, signature = part.model, part.inputs
            version = version or (None if part.version == "latest" else part.version)
        elif model is None:
            raise InvalidArgument("which model? Give --model or --bundle")
        else:
            signature = served_signature(client.models(), model, version)
        inputs = make_inputs(signature, files, shapes, f"model {model!r}", args.seed, args.max_frame_bytes)
        first = client.infer(model, inputs, version=version, priority=args.priority)
    check_expected(expected, first)
    if args.verify and not expected:
        expected = {name: array.copy() for name, array in first.items()}
    return SendPlan(
        brokers=args.broker,
        model=model,
        version=version,
        inputs=inputs,
        expected=expected if args.verify else None,
        timeout=args.timeout,
        priority=args.priority,
        max_frame_bytes=args.max_frame_bytes,
        poisson=args.arrivals == "poisson",
        seed=args.seed,
    )
