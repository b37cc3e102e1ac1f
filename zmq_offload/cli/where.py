"""The options of `zmq-offload compile` that say where to cut: tensors, regions, several cuts, or a plan."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmq_offload.console import settings
from zmq_offload.console.parser import Parser
from zmq_offload.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from zmq_offload.compile.onnx.shapes import Dim
    from zmq_offload.plan.files import Plan


class _Region(argparse.Action):
    """Begin a region. The options with `_OfRegion` that come after it belong to it."""

    only_argument = True  # what belongs to it follows from the order of arguments, which a file does not have

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), {"name": values}])


class _OrCut(argparse.Action):
    """Begin another cut, as `_Region` begins a region. The first cut is that of --cut."""

    only_argument = True

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        if not namespace.cut:
            parser.error("--or-cut needs a --cut before it")
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), {"cut": values}])


class _OfRegion(argparse.Action):
    """An option of the region or the cut before it. Before the first --region it is for the only region, or for all; a
    --wire before --cut is for all cuts."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        place = [vars(namespace), *(namespace.regions or ()), *(namespace.or_cut or ())][-1]
        if place is vars(namespace) and self.dest == "wire" and namespace.cut:
            namespace.own_wire = values
        elif namespace.or_cut and self.dest == "cut":
            parser.error("--cut is given after --or-cut; name each further cut with --or-cut")
        else:
            place[self.dest] = [*(place.get(self.dest) or ()), *values] if self.nargs == "+" else values


def add_options(parser: Parser) -> None:
    group = parser.add_argument_group("where to cut")
    group.add_argument(
        "--cut",
        nargs="+",
        action=_OfRegion,
        metavar="TENSOR",
        help="tensors at which the offloaded region begins; the path of a PyTorch module is the tensor that leaves it",
    )
    group.add_argument(
        "--until",
        nargs="+",
        action=_OfRegion,
        metavar="TENSOR",
        help="tensors at which the region ends (default: the model's outputs)",
    )
    group.add_argument(
        "--wire",
        action=_OfRegion,
        choices=("float32", "float16", "int8"),
        help="encoding of float32 tensors on the wire, in both directions (default: float32); the loss of accuracy is "
        "measured",
    )
    group.add_argument("--name", help="name of the offloaded model")
    group.add_argument(
        "--or-cut",
        nargs="+",
        action=_OrCut,
        metavar="TENSOR",
        help="another cut of the same bundle, with the --until and --wire that follow, and so has --cut; the device "
        "chooses among them as it runs; repeat it for several",
    )
    region = "offload a region as the model NAME, by the --cut, --until and --wire that follow; repeat it for several"
    group.add_argument("--region", dest="regions", action=_Region, metavar="NAME", help=f"{region} regions")
    group.add_argument(
        "--plan", type=settings.path, metavar="FILE", help="cut as planned by `zmq-offload plan --save FILE`"
    )
    group.add_argument(
        "--cuts",
        type=settings.path,
        metavar="FILE",
        help="make a bundle with all cuts that `zmq-offload plan --cuts K --save FILE` chose",
    )
    group.add_argument(
        "--seal",
        nargs="+",
        metavar="WEIGHT",
        help="weights that must stay off the device; a cut that leaves one there is an error (a plan has its own, too)",
    )
    parser.set_defaults(own_wire=None, splits=None)


def check_usage(args: argparse.Namespace, error: Callable[[str], object]) -> None:
    given = args.cut or args.until or args.regions or args.wire is not None or args.own_wire or args.list_cuts
    for option, file, others in (("--plan", args.plan, args.cuts), ("--cuts", args.cuts, args.plan)):
        if file is not None and (given or others is not None):
            more = "" if others is None else ", and one of --plan and --cuts"
            error(f"{option} sets --cut, --until and --wire; leave them out{more}")
    if args.regions and (args.cut or args.until or args.name):
        error("--region replaces --name; put its --cut and --until after it")
    for region in args.regions or ():
        if "cut" not in region:
            error(f"--region {region['name']} has no --cut; put one after it")
    if not args.list_cuts and not args.regions and not ((args.cut or args.plan or args.cuts) and args.name):
        error("--cut (or --plan or --cuts) and --name are required; --region or --list-cuts replaces them")


def keywords(args: argparse.Namespace) -> dict[str, Any]:
    """What is cut, as keywords of `compile_model`."""
    from zmq_offload.compile import api

    seal = args.seal or []
    if several := _splits(args):
        return {"cuts": [api.Cut(**cut) for cut in several], "name": args.name, "seal": seal}
    return {"regions": [api.Region(**region) for region in _regions(args)], "seal": seal}


def wires(args: argparse.Namespace) -> list[str]:
    """The encodings, each once."""
    return list(dict.fromkeys(given.get("wire") or args.wire or "float32" for given in _splits(args) or _regions(args)))


def places(args: argparse.Namespace) -> Sequence[dict[str, Any]]:
    """Where the tensors of all cuts and ends stand, to be replaced there."""
    return args.splits or (vars(args), *(args.or_cut or ()), *(args.regions or ()))


def _splits(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Several cuts, as keywords of `compile.Cut`; none if there is one."""
    if args.or_cut:
        return [{"cut": args.cut, "until": args.until, "wire": args.own_wire}, *args.or_cut]
    return list(args.splits or ())


def _regions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The regions as keywords of `compile.Region`."""
    return args.regions or [{"name": args.name, "cut": args.cut, "until": args.until, "wire": args.own_wire}]


def take_plan(args: argparse.Namespace, inputs: Mapping[str, Sequence[Dim]]) -> Mapping[str, Sequence[Dim]]:
    """Put the cuts and encodings of a plan, if one is given, into the arguments, and return the shapes of its inputs.

    Raises InvalidArgument for a plan of another model or of other shapes than `inputs`, for one that keeps weights
    off the device where --with-fallback would put them there, and for one without cuts to choose among. Raises
    FailedPrecondition for a plan without a cut.
    """
    file = args.plan or args.cuts
    if file is None:
        return inputs
    from zmq_offload.plan.files import Plan

    plan = Plan.read(file)
    plan.model.check(Path(args.model), file, inputs)
    if plan.sealed and args.with_fallback:
        raise InvalidArgument(
            f"{file} keeps {', '.join(map(repr, plan.sealed))} off the device (--seal), and --with-fallback would "
            "put a copy there; leave it out, or plan without --seal"
        )
    args.seal = [*(args.seal or ()), *plan.sealed]
    if args.cuts is not None:
        args.splits = _planned(plan, file)
    elif plan.local:
        raise FailedPrecondition(
            f"{file} keeps the whole model on the device, since no cut is better; there is nothing to split"
        )
    else:
        args.cut, args.until, args.wire = list(plan.cut), list(plan.until) or None, plan.wire
    return {name: tuple(shape) for name, shape in plan.model.inputs.items()}


def _planned(plan: Plan, file: Path) -> list[dict[str, Any]]:
    """The splits of a plan: each cut with each of its encodings."""
    if not plan.cuts:
        raise InvalidArgument(
            f"--cuts: {file} has one cut; compile it with --plan, or plan several with zmq-offload plan --cuts K"
        )
    return [
        {
            "cut": list(cut.cut),
            "until": list(cut.until) or None,
            "wire": wire,
            "predicted": cut.predicted.get(wire, {}),
        }
        for cut in plan.cuts
        for wire in cut.wires
    ]
