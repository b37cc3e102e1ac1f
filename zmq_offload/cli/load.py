"""`zmq-offload load`: put a model under load."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zmq_offload.common.cores import usable_cores
from zmq_offload.common.units import counted
from zmq_offload.console.interrupts import raising_ctrl_c
from zmq_offload.console.outputs import check_writable
from zmq_offload.console.parser import Parser
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
    from zmq_offload.loadgen.report import Report
    from zmq_offload.loadgen.sender import SendPlan
    from zmq_offload.loadgen.stats import Summary

levels_closed = checked(concurrencies, bool, "a list of concurrencies")
levels_open = checked(rates, bool, "a list of rates")
window = checked(float, lambda s: 0.01 <= s < 1e6, "a time in seconds, from 0.01")
priority = checked(
    int, lambda n: abs(n) <= limits.PRIORITY, f"a whole number from -{limits.PRIORITY} to {limits.PRIORITY}"
)

OUTPUTS = ("csv", "json", "png", "html")


def add_options(parser: Parser) -> None:
    parser.description = (
        "Send requests for a model, level after level. A level ends when three windows in a row agree within 10 %, or "
        "after --duration. The mean latency is split into client (with the way to the broker), queue, compute, and "
        "network (broker to worker and back). Ctrl-C ends the test and keeps what was measured."
    )
    parser.set_example(
        "zmq-offload load --model echo --shape x=1,3,320,320:FP32 \\\n    --concurrency 1,4,16",
        "zmq-offload load --bundle dist/device --rate 50:200:50 --html load.html",
    )
    add_frontend(parser)
    _add_what_options(parser)
    _add_level_options(parser)
    add_option(parser, "--timeout", seconds, 10.0, "maximum seconds for a request", metavar="S")
    add_option(parser, "--max-frame-bytes", bytes_, limits.MESSAGE_BYTES, "largest tensor, in bytes", metavar="N")
    parser.add_argument(
        "--priority", type=priority, default=0, metavar="N", help="priority of all requests (default: 0)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare each result with --expect, or with the first result"
    )
    parser.add_argument("--expect", action="append", default=[], metavar="NAME=FILE.npy", help="an expected output")
    for kind in OUTPUTS:
        parser.add_argument(f"--{kind}", type=path, metavar="FILE", help=f"write the results as {kind.upper()}")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=run, usage_error=parser.error)


def _add_what_options(parser: Parser) -> None:
    group = parser.add_argument_group("what to send", "Random data that fits the served model, unless given otherwise.")
    group.add_argument("--model", metavar="NAME", help="model to call (default: the first that --bundle calls)")
    group.add_argument("--version", type=count, metavar="N", help="its version (default: the latest)")
    group.add_argument("--bundle", type=path, metavar="DIR", help="take model and inputs from a device bundle")
    group.add_argument("--input", action="append", default=[], metavar="NAME=FILE.npy", help="an input from a file")
    group.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=EXTENTS[:DATATYPE]",
        help="shape of an input with symbolic dimensions, or of each input for a model that takes any, e.g. "
        "x=1,3,320,320:FP32",
    )
    group.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of random data and arrivals (default: 0)"
    )


def _add_level_options(parser: Parser) -> None:
    group = parser.add_argument_group("how much to send")
    load = group.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency",
        type=levels_closed,
        default=[Level(concurrency=1)],
        metavar="N,...",
        help="closed loop: number of requests in flight (default: 1)",
    )
    load.add_argument("--rate", type=levels_open, metavar="FROM:TO:STEP", help="open loop: requests begun a second")
    group.add_argument(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="times at which an open loop sends (default: poisson)",
    )
    group.add_argument("--processes", type=processes, default=1, metavar="N", help="sending processes (default: 1)")
    group.add_argument(
        "--duration", type=seconds, default=10.0, metavar="S", help="maximum seconds per level (default: 10)"
    )
    group.add_argument(
        "--window",
        type=window,
        metavar="S",
        help="seconds per window (default: 1, or a third of a --duration below 3)",
    )


def run(args: argparse.Namespace) -> int:
    from zmq_offload.loadgen import report

    length = args.window or min(1.0, args.duration / 3)
    if length > args.duration:
        args.usage_error(f"--window {length:g} is longer than --duration {args.duration:g}; give a shorter one")
    files = _output_files(args)
    plan = _prepare(args)
    levels: Sequence[Level] = args.rate or args.concurrency
    summaries, interrupted = _measure(args, plan, levels, length)
    show(report.UNITS, *report.notes(summaries), *report.error_lines(summaries))
    title = f"{plan.model}: {sum(a.nbytes for a in plan.inputs.values()):,} bytes a request"
    senders = counted(args.processes, "sending process", "es")
    setting = f"{senders} on a machine of {usable_cores()} CPUs; broker {', '.join(plan.brokers)}"
    _write(files if summaries else {}, report.Report(title, setting, summaries))
    if interrupted:
        print(f"zmq-offload: interrupted: {len(summaries)} of {len(levels)} levels were measured", file=sys.stderr)
        return 130
    return int(any(summary.requests == 0 or report.wrong(summary) for summary in summaries))


def _measure(
    args: argparse.Namespace, plan: SendPlan, levels: Sequence[Level], window: float
) -> tuple[list[Summary], bool]:
    """Measure all levels and print each as it ends. The flag tells of Ctrl-C: the summaries are those until then."""
    from zmq_offload.loadgen import report
    from zmq_offload.loadgen.measure import Interrupted, measure

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
    return summaries, interrupted


def _prepare(args: argparse.Namespace) -> SendPlan:
    """Read the inputs, and send one request to see that they work."""
    from zmq_offload.loadgen.inputs import once, parse_file, parse_shape
    from zmq_offload.loadgen.preparation import Order, prepare
    from zmq_offload.loadgen.sender import SendPlan

    files = once("--input", map(parse_file, args.input))
    parsed = map(parse_shape, args.shape)
    shapes = once("--shape", ((name, (datatype, shape)) for name, datatype, shape in parsed))
    expected = once("--expect", map(parse_file, args.expect))
    if expected and not args.verify:
        raise InvalidArgument("--expect needs --verify, which compares results with it; give both")
    order = Order(args.model, args.bundle, files, shapes, args.verify, expected)
    settings = SendPlan(
        brokers=args.broker,
        model=args.model or "",
        version=args.version,
        inputs={},
        expected=None,
        timeout=args.timeout,
        priority=args.priority,
        max_frame_bytes=args.max_frame_bytes,
        poisson=args.arrivals == "poisson",
        seed=args.seed,
    )
    return prepare(order, settings)


def _output_files(args: argparse.Namespace) -> dict[str, Path]:
    """The files to write, by kind. A file that cannot be written is an error now, not after minutes of measuring."""
    from zmq_offload.loadgen import report

    files: dict[str, Path] = {kind: getattr(args, kind) for kind in OUTPUTS if getattr(args, kind) is not None}
    report.check_charts(files)
    for kind, file in files.items():
        same = next((k for k, f in files.items() if k != kind and os.path.realpath(f) == os.path.realpath(file)), None)
        if same is not None and (file.is_file() or not file.exists()):
            raise InvalidArgument(f"--{kind} and --{same} are the same file, {file}; give each a file of its own")
        check_writable(file)
    return files


def _write(files: dict[str, Path], whole: Report) -> None:
    """Write all files. Raises FailedPrecondition for those that cannot be written, after the others."""
    from zmq_offload.loadgen import report

    def failure(kind: str, file: Path) -> str | None:
        try:
            report.WRITERS[kind](file, whole)
        except OSError as error:
            return f"{file} cannot be written: {error.strerror or error}"
        return None

    failures = [text for kind, file in files.items() if (text := failure(kind, file)) is not None]
    if failures:
        raise FailedPrecondition("; ".join(failures))
