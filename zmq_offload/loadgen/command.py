"""`zmq-offload load`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zmq_offload.cores import usable_cores
from zmq_offload.errors import InvalidArgument
from zmq_offload.loadgen.levels import Level, concurrencies, rates
from zmq_offload.settings import add_frontend, add_option, checked, count, seconds

levels_closed = checked(concurrencies, bool, "a list of concurrencies")
levels_open = checked(rates, bool, "rates")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "load",
        help="put a model under load: throughput, latency, and where the time goes",
        description="Send requests for a model, level after level, until three windows in a row agree within 10 %%. "
        "Latency is split into client (with the way to the broker), queue, compute, and network (broker to worker and "
        "back).",
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
        help="closed loop: so many requests under way at any time (default: 1)",
    )
    load.add_argument(
        "--rate", type=levels_open, metavar="FROM:TO:STEP", help="open loop: so many requests begun a second"
    )
    parser.add_argument(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="when an open loop sends (default: poisson)",
    )
    parser.add_argument("--processes", type=count, default=1, metavar="N", help="processes that send (default: 1)")
    parser.add_argument(
        "--duration", type=seconds, default=10.0, metavar="S", help="most seconds a level (default: 10)"
    )
    parser.add_argument("--window", type=seconds, default=1.0, metavar="S", help="seconds a window (default: 1)")
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
        "--bundle", type=Path, metavar="DIR", help="take the signature of a device bundle's offloaded part"
    )
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of random data and arrivals (default: 0)")
    add_option(parser, "--timeout", seconds, 10.0, "seconds a request may take", metavar="S")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="of all requests (default: 0)")
    parser.add_argument(
        "--verify", action="store_true", help="compare each result with --expect, or with the first result"
    )
    parser.add_argument("--expect", action="append", default=[], metavar="NAME=FILE.npy", help="an expected output")
    for kind in ("csv", "json", "png", "html"):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write the results as {kind.upper()}")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from zmq_offload.loadgen import report
    from zmq_offload.loadgen.measure import Progress, measure

    if args.png:
        report.check_png()  # not after minutes of measuring
    plan = _plan(args)
    levels: Sequence[Level] = args.rate or args.concurrency
    summaries = measure(
        plan,
        levels,
        processes=args.processes,
        window=args.window,
        duration=args.duration,
        progress=Progress(quiet=args.quiet),
    )
    title = f"{plan.model}: {sum(a.nbytes for a in plan.inputs.values()):,} bytes a request"
    senders = f"{args.processes} sending process{'es' * (args.processes > 1)}"
    setting = f"{senders} on a machine of {usable_cores()} CPUs; broker {', '.join(plan.brokers)}"
    print(report.table(summaries))
    for line in report.error_lines(summaries):
        print(line)
    whole = report.Report(title, setting, summaries)
    for kind, write in report.WRITERS.items():
        path = getattr(args, kind)
        if path is not None:
            write(path, whole)
    return int(any(summary.requests == 0 or report.wrong(summary) for summary in summaries))


def _plan(args: argparse.Namespace) -> Any:
    """What is to be sent. One request is made here, so that what cannot work fails now and in one line."""
    from zmq_offload.client import Client
    from zmq_offload.loadgen.inputs import make_inputs, parse_file, parse_shape, served_signature
    from zmq_offload.loadgen.sender import Plan

    files = dict(parse_file(text) for text in args.input)
    shapes = {name: (datatype, shape) for name, datatype, shape in map(parse_shape, args.shape)}
    expected = dict(parse_file(text) for text in args.expect)
    if expected and not args.verify:
        raise InvalidArgument("--expect says what --verify compares with; give both")
    model, version = args.model, args.version
    with Client(args.broker, timeout=args.timeout) as client:
        if args.bundle is not None:
            from zmq_offload.byoc.manifest import Manifest

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
        inputs = make_inputs(signature, files, shapes, f"model {model!r}", args.seed)
        first = client.infer(model, inputs, version=version, priority=args.priority)
    if args.verify and not expected:
        expected = {name: array.copy() for name, array in first.items()}
    return Plan(
        brokers=args.broker,
        model=model,
        version=version,
        inputs=inputs,
        expected=expected if args.verify else None,
        timeout=args.timeout,
        priority=args.priority,
        poisson=args.arrivals == "poisson",
        seed=args.seed,
    )
