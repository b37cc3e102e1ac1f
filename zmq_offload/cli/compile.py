"""`zmq-offload compile`."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmq_offload.artifacts.repository import Batching
from zmq_offload.common.extras import needs
from zmq_offload.compile.interrupt import stoppable
from zmq_offload.console import settings
from zmq_offload.console.progress import Progress
from zmq_offload.console.settings import count, microseconds
from zmq_offload.console.silence import add_verbose, silent
from zmq_offload.console.tables import Column, Part, Table, show
from zmq_offload.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from zmq_offload.compile.cuts import CutPoint


class _Region(argparse.Action):
    """Begins a region, to which the options of `_OfRegion` after it belong."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, value: Any, _option: str | None = None) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), {"name": value}])


class _OfRegion(argparse.Action):
    """An option of the region that stands before it; before the first, of the only one, or of all."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, value: Any, _option: str | None = None) -> None:
        place = namespace.regions[-1] if namespace.regions else vars(namespace)
        place[self.dest] = [*(place.get(self.dest) or ()), *value] if self.nargs == "+" else value


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compile",
        help="split an ONNX model into a device bundle and an offloaded subgraph",
        description="Split an ONNX model at its tensors: DIR/device for the device, DIR/repository for the workers.",
    )
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=DIMS",
        help="shape of an input, x=1,3,320,320; a symbolic dimension is a name or '?': x=N,3,48,192",
    )
    parser.add_argument(
        "--list-cuts", action="store_true", help="list the tensors at which the model can be cut, and exit"
    )
    parser.add_argument(
        "--cut", nargs="+", action=_OfRegion, metavar="TENSOR", help="tensors at which the offloaded part begins"
    )
    parser.add_argument(
        "--until",
        nargs="+",
        action=_OfRegion,
        metavar="TENSOR",
        help="tensors at which it ends (default: the outputs of the model)",
    )
    parser.add_argument(
        "--wire",
        action=_OfRegion,
        choices=("float32", "float16", "int8"),
        help="encoding of float32 tensors on the wire, both ways (default: float32); what another one costs in "
        "accuracy is measured",
    )
    parser.add_argument(
        "--wire-check",
        nargs="+",
        metavar="FILE",
        help="inputs to measure that on: .npz by the names of the inputs, .npy for a single one (default: random ones)",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="before anything is written, compare what both parts compute with what the file means in ONNX Runtime, or "
        "in onnx.reference where that is not installed; a difference is an error (default: --check)",
    )
    parser.add_argument(
        "--check-input",
        nargs="+",
        metavar="FILE",
        help="inputs to check on: NAME=FILE.npy each, or FILE.npz by the inputs' names (default: random ones)",
    )
    parser.add_argument("--plan", type=settings.path, metavar="F", help="cut as `zmq-offload plan --save F` chose")
    parser.add_argument("--name", help="name of the offloaded model")
    parser.add_argument(
        "--region",
        dest="regions",
        action=_Region,
        metavar="NAME",
        help="an offloaded part, which becomes the model NAME; repeat it for several parts. The --cut, --until and "
        "--wire after it are its own",
    )
    parser.add_argument(
        "--version",
        type=count,
        metavar="N",
        help="its version number (default: 1; with --only-subgraph the next free one)",
    )
    parser.add_argument("--target", metavar="T", help="TVM target of the workers, a name or JSON (default: this CPU)")
    parser.add_argument("--device-target", metavar="T", help="TVM target of the device (default: this CPU)")
    parser.add_argument(
        "-o", "--output", type=settings.folder, default="dist", metavar="DIR", help="output folder (default: dist)"
    )
    parser.add_argument(
        "--repository", type=settings.folder, metavar="DIR", help="model repository (default: DIR/repository)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing version and device bundle")
    parser.add_argument(
        "--new-signature",
        action="store_true",
        help="write a version whose inputs or outputs differ from the highest version's; devices built for that one "
        "cannot use it",
    )
    parser.add_argument(
        "--only-subgraph",
        action="store_true",
        help="write a new version of the subgraph only, for devices in use; DIR/device stays as it is",
    )
    parser.add_argument(
        "--with-fallback",
        action="store_true",
        help="put a copy of the offloaded part into the device bundle, which then holds its weights: the device can "
        "compute it where workers are slower or out of reach",
    )
    parser.add_argument(
        "--max-batch",
        type=count,
        metavar="N",
        help="maximum rows that workers run together (default: one request at a time)",
    )
    parser.add_argument(
        "--batch-delay",
        type=microseconds,
        metavar="US",
        help="microseconds that a request may wait for others to run with it (default: 0)",
    )
    parser.add_argument(
        "--tune",
        type=count,
        metavar="TRIALS",
        help="measure TRIALS other schedules here and use the faster ones; Ctrl-C stops tuning and builds with "
        "what was found",
    )
    parser.add_argument(
        "--tuning-db",
        type=settings.folder,
        metavar="DIR",
        help="folder that keeps what tuning found, for later builds, with or without --tune (default: DIR/tuning)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_verbose(parser)
    parser.set_defaults(run=stoppable(silent(run)), usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    if args.plan is not None and (args.cut or args.until or args.regions or args.wire is not None or args.list_cuts):
        args.usage_error("--plan has --cut, --until and --wire in it; leave them out")
    if args.regions and (args.cut or args.until or args.name):
        args.usage_error("--region takes the place of --name; its --cut and --until come after it")
    for region in args.regions or ():
        if "cut" not in region:
            args.usage_error(f"--region {region['name']} needs --cut after it")
    if not args.list_cuts and not args.regions and not ((args.cut or args.plan) and args.name):
        args.usage_error("--cut (or --plan) and --name are required (or --region, or --list-cuts)")
    if args.batch_delay is not None and args.max_batch is None:
        args.usage_error("--batch-delay goes with --max-batch")
    with needs("compile"):
        from zmq_offload.compile import accuracy, api, importer, shapes
    inputs = shapes.parse_shapes(args.input)
    if args.list_cuts:
        show(cut_table(api.list_cuts(args.model, inputs=inputs)))
        return 0
    args.wire = args.wire or "float32"
    if args.plan is not None:
        inputs = take_plan(args, inputs)
    regions: list[dict[str, Any]] = args.regions or [{"name": args.name, "cut": args.cut, "until": args.until}]
    if args.check_input and not args.check:
        args.usage_error("--check-input goes with --check")
    check = accuracy.read_samples(args.check_input or ()) or args.check
    if isinstance(check, list):
        for sample in check:
            accuracy.named(sample, importer.model_inputs(args.model, inputs))
    samples = [accuracy.read_sample(file) for file in args.wire_check or ()]
    if samples:  # before the slow part, for what they are compared on after it
        specs = importer.model_inputs(args.model, inputs)
        for sample in samples:
            accuracy.named(sample, specs)
    progress = Progress(quiet=args.quiet)
    split = functools.partial(
        api.compile_model,
        args.model,
        inputs=inputs,
        regions=[api.Region(**region) for region in regions],
        wire=args.wire,
    )
    compiled = split(
        version=args.version,
        target=args.target,
        device_target=args.device_target,
        repository=args.repository,
        output=args.output,
        force=args.force,
        only_subgraph=args.only_subgraph,
        check=check,
        with_fallback=args.with_fallback,
        new_signature=args.new_signature,
        batching=None if args.max_batch is None else Batching(args.max_batch, args.batch_delay or 0),
        tune=args.tune or 0,
        tuning_db=args.tuning_db,
        progress=progress,
    )
    if compiled.tuning is not None:
        print(f"tuning:   {compiled.tuning}")
    for folder, model in zip(compiled.subgraphs, compiled.models, strict=True):
        print(f"subgraph: {folder}  ({model.name} version {model.version})")
        print(f"  takes   {'; '.join(map(str, model.inputs))}")
        print(f"  returns {'; '.join(map(str, model.outputs))}")
    if not args.only_subgraph:
        sealed = "" if not compiled.manifest.fallback else "  (not sealed: it holds a copy of the offloaded part)"
        print(f"device:   {compiled.device}{sealed}")
    if compiled.check is not None:
        print(f"check:    {compiled.check}")
    wires = list(dict.fromkeys(region.get("wire") or args.wire for region in regions))
    if wires != ["float32"] or args.wire_check:
        with progress.step("compare it with the uncut model"):
            given = [accuracy.named(sample, compiled.manifest.inputs) for sample in samples]
            losses = accuracy.measure_losses(
                args.model,
                compiled,
                given or [accuracy.random_sample(compiled.manifest.inputs)],
                inputs=inputs,
                again=lambda folder: split(output=folder),
            )
        on = f"{len(given)} given input{'s' if len(given) > 1 else ''}" if given else "a random input"
        print(f"accuracy: {' and '.join(wires)} on the wire against the uncut model, on {on}", *losses, sep="\n  ")
    return 0


def take_plan(args: argparse.Namespace, inputs: Mapping[str, Sequence[int | str]]) -> dict[str, tuple[int | str, ...]]:
    """Put what a plan says into the arguments; the inputs' shapes of the plan.

    Raises InvalidArgument for a plan of another model or of other shapes than `inputs`, or that keeps weights off the
    device where --with-fallback is to put them there, and FailedPrecondition if it leaves the whole model on the
    device.
    """
    from zmq_offload.plan.files import Plan

    plan = Plan.read(args.plan)
    plan.model.check(Path(args.model), args.plan, inputs)
    if plan.sealed and args.with_fallback:
        raise InvalidArgument(
            f"{args.plan} keeps {', '.join(map(repr, plan.sealed))} off the device (--seal); --with-fallback would put "
            "a copy there: leave it out, or plan without --seal"
        )
    if plan.local:
        raise FailedPrecondition(
            f"{args.plan} says: device only; no cut beats the whole model on the device, so there is nothing to split"
        )
    args.cut, args.until, args.wire = list(plan.cut), list(plan.until) or None, plan.wire
    return {name: tuple(shape) for name, shape in plan.model.inputs.items()}


def cut_table(cuts: list[CutPoint]) -> Part:
    """The cuts for a person: tensor, datatype and shape, bytes, share of multiply-adds offloaded."""
    if not cuts:
        return "no single tensor separates the model's inputs from its outputs; give several to --cut"
    columns = (
        Column("TENSOR", folds=True),
        Column("SHAPE"),
        Column("BYTES", right=True),
        Column("OFFLOADED", right=True),
    )
    rows = [(c.name, str(c.tensor).removeprefix(f"{c.name} "), f"{c.nbytes:,}", f"{c.share:.1%}") for c in cuts]
    return Table(columns, rows)
