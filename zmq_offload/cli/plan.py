"""`zmq-offload plan`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmq_offload.common import units
from zmq_offload.common.cores import usable_cores
from zmq_offload.common.extras import needs
from zmq_offload.common.units import counted
from zmq_offload.compile.interrupt import stoppable
from zmq_offload.console import settings
from zmq_offload.console.outputs import check_outputs
from zmq_offload.console.progress import Progress
from zmq_offload.console.settings import checked, count, threads, whole
from zmq_offload.console.silence import add_verbose, silent
from zmq_offload.console.tables import Facts, show
from zmq_offload.plan.costs import OBJECTIVES, WIRES, Costs, Network, Overhead, Split, Stages, Times
from zmq_offload.plan.files import CutTimes, Plan, PlannedModel
from zmq_offload.plan.rules import allowed_splits
from zmq_offload.plan.search import Decision, decide

if TYPE_CHECKING:
    from zmq_offload.plan.halves import Cuttable

PICTURE = "zmq-offload-plan.png"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="find the best place to cut an ONNX model for a device, a server and a link",
        description="Measure both parts of every clean cut of an ONNX model with TVM on this machine, predict what "
        "each split costs over a link, each pair of cuts and each encoding, and choose. The device is one thread of "
        "this machine (slowed down), or a profile that `zmq-offload profile MODEL.onnx --save` took on it.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=DIMS", help="shape of an input, in numbers: x=1,3,320,320"
    )
    parser.add_argument(
        "--bandwidth",
        required=True,
        type=checked(units.bandwidth, bool, "a bandwidth like 50Mbit"),
        metavar="RATE",
        help="the link's rate in each direction, payload only: 50Mbit",
    )
    parser.add_argument(
        "--rtt",
        required=True,
        type=checked(units.duration, lambda t: t >= 0, "a time like 10ms"),
        metavar="TIME",
        help="the link's round trip: 10ms",
    )
    device = parser.add_mutually_exclusive_group()
    factor = checked(float, lambda f: 1 <= f <= 1e4, "a factor from 1 to 10000")
    device.add_argument(
        "--device-slowdown", type=factor, metavar="K", help="the device is K times slower than one thread here"
    )
    device.add_argument("--device-profile", type=settings.path, metavar="F", help="the device's times, measured on it")
    parser.add_argument(
        "--server-profile", type=settings.path, metavar="F", help="the server's times (default: measured here)"
    )
    parser.add_argument(
        "--server-threads", type=threads, metavar="N", help="TVM threads of a worker (default: the cores)"
    )
    parser.add_argument("--objective", choices=OBJECTIVES, default="latency", help="what counts (default: latency)")
    parser.add_argument(
        "--seal", nargs="+", action="extend", default=[], metavar="TENSOR", help="weights that must stay off the device"
    )
    parser.add_argument(
        "--private",
        nargs="+",
        action="extend",
        default=[],
        metavar="INPUT",
        help="inputs that must not leave the device unprocessed",
    )
    parser.add_argument(
        "--wire",
        nargs="+",
        choices=WIRES,
        default=list(WIRES),
        metavar="W",
        help=f"encodings to consider (default: {' '.join(WIRES)})",
    )
    parser.add_argument(
        "--confirm", type=whole, default=4, metavar="N",
        help="compile and run up to N of the best splits, rather than trust their parts' times (default: 4)",
    )  # fmt: skip
    parser.add_argument("--repeat", type=count, default=15, metavar="N", help="runs to take medians of (default: 15)")
    parser.add_argument("--top", type=count, default=12, metavar="N", help="splits to show (default: 12)")
    parser.add_argument(
        "--save", type=settings.path, metavar="F", help="write the choice, for `zmq-offload compile --plan F`"
    )
    settings.add_picture(parser, PICTURE)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_verbose(parser)
    parser.set_defaults(run=stoppable(silent(run)))


def run(args: argparse.Namespace) -> int:
    # Before TVM starts its threads: as many as it will ever be told to use.
    server_threads = args.server_threads or usable_cores()
    os.environ["TVM_NUM_THREADS"] = str(server_threads)
    with needs("compile"):
        import matplotlib  # noqa: F401  the first use would be minutes later

        from zmq_offload.charts import cuts
        from zmq_offload.charts.style import save
        from zmq_offload.compile import importer, shapes
        from zmq_offload.plan import halves, report, restrictions
    check_outputs(args.save, args.output)
    profiles = {file: CutTimes.read(file) for file in (args.device_profile, args.server_profile) if file is not None}
    inputs = shapes.parse_shapes(args.input)
    wires = [w for w in WIRES if w in args.wire]
    progress = Progress(3, quiet=args.quiet)
    with progress.step(f"import {args.model}"):
        model = halves.cuttable(importer.import_onnx(args.model, inputs))
        planned = PlannedModel.of(args.model, model.imported.inputs)
        given = {file: profile.times_for(args.model, model.points, file) for file, profile in profiles.items()}
        rules = restrictions.rules_of(model, importer.read_onnx(args.model), args.seal, args.private)
        splits = allowed_splits(model.points, wires, rules)
    device, server = _times(args, model, given, server_threads, progress)
    with progress.step("measure what a request costs by itself"):
        overhead = _overhead()
    costs = Costs(model.points, device, server, Network(args.bandwidth, args.rtt), overhead)
    decision = _decide(args, model, costs, splits, server_threads, progress)

    title = f"{args.model.name} over {units.bandwidth_text(args.bandwidth)}, {args.rtt * 1e3:g} ms"
    save(cuts.draw(report.chart(costs, decision, wires, title)), args.output)
    plan = _plan(model, planned, decision, args.seal)
    if args.save is not None:
        plan.write(args.save)
    machines = [("model", f"{args.model.name}, {'; '.join(map(str, model.imported.inputs))}")]
    machines += _machines(args, profiles, server_threads)
    table = report.table(costs, decision, rules, args.top)
    show(Facts(report.facts(costs, decision, machines), 10), "", table, "", report.UNITS, "")
    show(report.verdict(costs, decision, rules))
    if args.save is not None and not plan.local:
        print(report.compile_command(args.model, args.save))
    print(f"drawn in {args.output}")
    return 0


def _times(
    args: argparse.Namespace, model: Cuttable, given: dict[Path, Times], server_threads: int, progress: Progress
) -> tuple[Times, Times]:
    from zmq_offload.compile.target import host_target
    from zmq_offload.plan.halves import measure_halves

    wanted = {}
    if args.device_profile is None:
        wanted["device"] = 1
    if args.server_profile is None:
        wanted["server"] = server_threads
    found = {}
    if wanted:
        with progress.step(f"measure both parts of {len(model.points) - 2} cuts"):
            taken = measure_halves(model, host_target(), list(wanted.values()), args.repeat)
        found = dict(zip(wanted, taken, strict=True))
    device = found["device"].slowed(args.device_slowdown or 1.0) if "device" in found else given[args.device_profile]
    server = found["server"] if "server" in found else given[args.server_profile]
    return device, server


def _overhead() -> Overhead:
    from zmq_offload.plan.overhead import measure_overhead

    return measure_overhead()


def _decide(
    args: argparse.Namespace,
    model: Cuttable,
    costs: Costs,
    splits: list[Split],
    server_threads: int,
    progress: Progress,
) -> Decision:
    from zmq_offload.compile.target import host_target
    from zmq_offload.plan.confirm import measure_split

    target = host_target()

    def measure(split: Split) -> Stages:
        with progress.step(f"compile and run the cut at {model.points[split.start].name} as {split.wire}"):
            here = measure_split(args.model, model, split, (target, target), (1, server_threads), args.repeat)
        # What was measured elsewhere stays as it was measured there.
        factor = args.device_slowdown or 1.0
        before = here.device * factor, here.rest * factor
        if args.device_profile is not None:
            estimate = costs.predict(split)
            before = estimate.device + estimate.encode, estimate.rest
        return Stages(before[0], here.server if args.server_profile is None else costs.predict(split).server, before[1])

    there = args.device_profile is not None and args.server_profile is not None
    return decide(costs, splits, args.objective, 0 if there else args.confirm, measure)


def _plan(model: Cuttable, planned: PlannedModel, decision: Decision, sealed: list[str]) -> Plan:
    from zmq_offload.plan.confirm import names_of
    from zmq_offload.plan.report import figures

    chosen = decision.chosen
    cut, until = ((), ()) if chosen.local else names_of(model, chosen.split)
    return Plan(planned, cut, until, chosen.split.wire, decision.objective, figures(chosen), tuple(sealed))


def _machines(args: argparse.Namespace, profiles: dict[Path, CutTimes], server_threads: int) -> list[tuple[str, str]]:
    def elsewhere(file: Path) -> str:
        profile = profiles[file]
        return f"{profile.machine}, {counted(profile.threads, 'thread')} (measured there: {file})"

    slower = f", slowed down {args.device_slowdown:g} times" if args.device_slowdown else ""
    device = elsewhere(args.device_profile) if args.device_profile else f"one thread of this machine{slower}"
    here = f"this machine, {counted(server_threads, 'thread')}"
    return [("device", device), ("server", elsewhere(args.server_profile) if args.server_profile else here)]
