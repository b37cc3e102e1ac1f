"""`zmq-offload plan`: find the best place to cut a model."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from zmq_offload.common import units
from zmq_offload.common.cores import usable_cores
from zmq_offload.common.extras import needs
from zmq_offload.compile.interrupt import stoppable
from zmq_offload.console import settings
from zmq_offload.console.outputs import check_outputs
from zmq_offload.console.parser import Parser
from zmq_offload.console.progress import Progress
from zmq_offload.console.settings import checked, count, threads, whole
from zmq_offload.console.silence import add_verbose, silent
from zmq_offload.console.tables import Facts, Prose, show
from zmq_offload.plan import links
from zmq_offload.plan.costs import OBJECTIVES, WIRES, Network
from zmq_offload.plan.frontiers import MOST_TENSORS
from zmq_offload.testing.link.trace import Trace

PICTURE = "zmq-offload-plan.png"
MEASURE = "measure"

rate = checked(units.bandwidth, bool, "a bandwidth like 50Mbit")
delay = checked(units.duration, lambda t: t >= 0, "a time like 10ms")
factor = checked(float, lambda f: 1 <= f <= 1e4, "a factor from 1 to 10000")


def add_options(parser: Parser) -> None:
    parser.description = (
        "Measure both parts of each cut of a model, at up to four tensors, with TVM on this machine, predict what each "
        "split (a pair of cuts and an encoding) costs over a link, and choose the best. The device is one thread of "
        "this machine, slowed down, or a profile that `zmq-offload profile MODEL --save FILE` measured on the device."
    )
    parser.set_example(
        "zmq-offload plan model.onnx --input x=1,3,320,320 --bandwidth 50Mbit \\\n"
        "    --rtt 10ms --device-slowdown 8 --save plan.json"
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model file: ONNX, .pt2 or .tflite")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=DIMS", help="input shape in numbers, e.g. x=1,3,320,320"
    )
    _add_link_options(parser)
    _add_machine_options(parser)
    _add_choice_options(parser)
    parser.add_argument("--repeat", type=count, default=15, metavar="N", help="runs for each median (default: 15)")
    parser.add_argument("--top", type=count, default=12, metavar="N", help="splits to show (default: 12)")
    parser.add_argument(
        "--save", type=settings.path, metavar="FILE", help="write the plan for `zmq-offload compile --plan FILE`"
    )
    settings.add_picture(parser, PICTURE)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_verbose(parser)
    parser.set_defaults(run=stoppable(silent(partial(run, parser))))


def _add_link_options(parser: Parser) -> None:
    group = parser.add_argument_group("the link")
    group.add_argument("--bandwidth", type=rate, metavar="RATE", help="payload rate in each direction, e.g. 50Mbit")
    group.add_argument("--rtt", type=delay, metavar="TIME", help="round-trip time, e.g. 10ms")
    group.add_argument(
        "--link",
        metavar="TRACE",
        help="instead of both: a recorded link, a CSV file or a name of `zmq-offload link --list-traces`; or `measure` "
        "the one from here to the broker",
    )
    settings.add_frontend(parser)


def _add_machine_options(parser: Parser) -> None:
    group = parser.add_argument_group("the device and the server")
    device = group.add_mutually_exclusive_group()
    device.add_argument(
        "--device-slowdown", type=factor, metavar="K", help="the device is K times slower than one thread here"
    )
    device.add_argument(
        "--device-profile", type=settings.path, metavar="FILE", help="the device's times, measured on the device"
    )
    group.add_argument(
        "--server-profile", type=settings.path, metavar="FILE", help="the server's times (default: measured here)"
    )
    group.add_argument(
        "--server-threads", type=threads, metavar="N", help="TVM threads of a worker (default: all cores)"
    )


def _add_choice_options(parser: Parser) -> None:
    group = parser.add_argument_group("the choice")
    group.add_argument(
        "--cuts",
        type=count,
        default=1,
        metavar="K",
        help="choose up to K cuts that together serve the links around this one, for `compile --cuts`",
    )
    group.add_argument(
        "--tensors", type=count, default=MOST_TENSORS, metavar="N", help="the most tensors of a cut (default: 4)"
    )
    group.add_argument("--objective", choices=OBJECTIVES, default="latency", help="what to optimize (default: latency)")
    group.add_argument(
        "--seal", nargs="+", action="extend", default=[], metavar="TENSOR", help="weights that must stay off the device"
    )
    group.add_argument(
        "--private",
        nargs="+",
        action="extend",
        default=[],
        metavar="INPUT",
        help="inputs that must not leave the device unprocessed",
    )
    group.add_argument(
        "--wire",
        nargs="+",
        choices=WIRES,
        default=list(WIRES),
        metavar="W",
        help=f"encodings to consider (default: {' '.join(WIRES)})",
    )
    group.add_argument(
        "--confirm",
        type=whole,
        default=4,
        metavar="N",
        help="compile and run up to N of the best splits instead of trusting predictions (default: 4)",
    )


def _network(args: argparse.Namespace) -> Network:
    """The link that the options say."""
    if args.link is None:
        return Network(args.bandwidth, args.rtt)
    if args.link != MEASURE:
        return links.network_of(links.periods_of(Trace.find(args.link)))
    from zmq_offload.plan.measured_link import ECHO, measure_link

    network, both = measure_link(args.broker)
    if not both and not args.quiet:
        print(f"no worker serves {ECHO!r}, so the way back counts as fast as the way there", file=sys.stderr)
    return network


def run(parser: Parser, args: argparse.Namespace) -> int:
    if args.link is None and (args.bandwidth is None or args.rtt is None):
        parser.error("the link is missing; give --bandwidth and --rtt, or --link")
    if args.link is not None and (args.bandwidth or args.rtt is not None):
        parser.error("--link stands for --bandwidth and --rtt; leave them out")
    if args.tensors != MOST_TENSORS and (args.device_profile or args.server_profile):
        parser.error(f"profiles are of cuts at up to {MOST_TENSORS} tensors; leave --tensors out")
    server_threads = args.server_threads or usable_cores()
    # Before TVM starts its threads: it cannot use more later.
    os.environ["TVM_NUM_THREADS"] = str(server_threads)
    with needs("compile"):
        import matplotlib  # noqa: F401  a missing package is reported before minutes of measuring

        from zmq_offload.charts import cuts
        from zmq_offload.charts.style import save
        from zmq_offload.compile.onnx import shapes
        from zmq_offload.plan import planning, report
        from zmq_offload.plan.files import CutTimes
    check_outputs(args.save, args.output)
    device, server = (
        None if file is None else planning.Measured(file, CutTimes.read(file))
        for file in (args.device_profile, args.server_profile)
    )
    question = planning.Question(
        model=args.model,
        inputs=shapes.parse_shapes(args.input),
        network=_network(args),
        wires=[wire for wire in WIRES if wire in args.wire],
        objective=args.objective,
        server_threads=server_threads,
        device=device,
        server=server,
        slowdown=args.device_slowdown,
        sealed=args.seal,
        private=args.private,
        cuts=args.cuts,
        most_tensors=args.tensors,
        confirm=args.confirm,
        repeat=args.repeat,
    )
    answer = planning.make_plan(question, Progress(3, quiet=args.quiet))
    costs, decision = answer.costs, answer.decision
    title = f"{args.model.name} over {report.link_text(question.network)}"
    save(cuts.draw(report.chart(costs, decision, question.wires, title)), args.output)
    if args.save is not None:
        answer.plan.write(args.save)
    table = report.table(costs, decision, answer.rules, args.top)
    show(Facts(report.facts(costs, decision, answer.facts), 10), "", table, "", report.UNITS, "")
    show(Prose(report.verdict(costs, decision, answer.rules)))
    target = None if device is None else device.times.target
    if answer.links:
        show("", report.several(costs, answer.several, answer.links, decision), "", report.SEVERAL)
    if args.save is not None and answer.plan.cuts:
        print(report.compile_command(args.model, args.save, target, "--cuts"))
    elif args.save is not None and not answer.plan.local:
        print(report.compile_command(args.model, args.save, target))
    print(f"drawn in {args.output}")
    return 0
