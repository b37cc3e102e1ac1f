"""What tensors enclose of a model: the part to offload, and whether it is one."""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from tvm import ir

from zmq_offload.byoc.encoding import Wire
from zmq_offload.byoc.graph import Graph
from zmq_offload.errors import InvalidArgument


@dataclass(frozen=True)
class Region:
    """A part of a model that is to be offloaded as the model `name`.

    `cut` names the tensors at which it begins, `until` those at which it ends (default: the outputs of the whole model
    that depend on `cut`). `wire` is how its float32 tensors travel, None for what holds for the others.
    """

    name: str
    cut: Sequence[str]
    until: Sequence[str] | None = None
    wire: Wire | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """A region found in a graph: `cuts` and `untils` with the user's names, `inside` all that is computed in it, the
    computations of constants included, and `varying` those of it that are no constants."""

    name: str
    cuts: dict[ir.Var, str]
    untils: dict[ir.Var, str]
    inside: set[ir.Var]
    varying: set[ir.Var]


def check_distinct(regions: Sequence[Region]) -> None:
    """Raises InvalidArgument for two regions of one name."""
    names = [region.name for region in regions]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument(f"two regions are named {name!r}; each becomes a model, and needs a name of its own")


def find_parts(graph: Graph, regions: Sequence[Region]) -> list[Part]:
    """The parts of `graph` that the regions enclose, in the order of `regions`.

    Raises InvalidArgument for tensors that are not there or that do not enclose a part of the graph (an input of the
    model reaches the part around the cut, the rest of the model needs a tensor from inside it, the part feeds itself),
    for a name that is given twice, and for regions that overlap or that need each other's results in a circle.
    """
    if not regions:
        raise InvalidArgument("name at least one region to offload")
    check_distinct(regions)
    parts = []
    for region in regions:
        with _naming(region.name, regions):
            parts.append(_part(graph, region))
    _check_apart(graph, parts)
    _check_no_circle(graph, parts)
    for part in parts:
        with _naming(part.name, regions):
            _check_rest_needs_nothing_else(graph, part)
    return parts


@contextmanager
def _naming(name: str, regions: Sequence[Region]) -> Iterator[None]:
    """Say which of several regions an error is about."""
    try:
        yield
    except InvalidArgument as error:
        raise (InvalidArgument(f"region {name!r}: {error}") if len(regions) > 1 else error) from None


def _part(graph: Graph, region: Region) -> Part:
    cuts = _distinct(graph, region.cut, "--cut")
    until = region.until if region.until is not None else _dependent_outputs(graph, list(cuts))
    untils = _distinct(graph, until, "--until")
    inside = _enclosed(graph, cuts, untils)
    return Part(region.name, cuts, untils, inside, inside & graph.from_inputs())


def _distinct(graph: Graph, names: Sequence[str], option: str) -> dict[ir.Var, str]:
    found: dict[ir.Var, str] = {}
    for name in names:
        var = graph.find(name, option)
        if var in found and found[var] != name:
            raise InvalidArgument(f"{option}: {found[var]!r} and {name!r} are the same tensor; name one of them")
        found[var] = name
    if not found:
        raise InvalidArgument(f"{option}: name at least one tensor")
    return found


def _dependent_outputs(graph: Graph, cuts: list[ir.Var]) -> list[str]:
    chosen: dict[ir.Var, str] = {}
    for name in graph.outputs:
        value = graph.tensors[name]
        if isinstance(value, ir.Var) and value not in cuts and graph.behind([value]).intersection(cuts):
            chosen.setdefault(value, name)
    if not chosen:
        names = ", ".join(repr(graph.name(c)) for c in cuts)
        raise InvalidArgument(f"--cut: no output of the model is computed from {names}, there is nothing to offload")
    return list(chosen.values())


def _enclosed(graph: Graph, cuts: dict[ir.Var, str], untils: dict[ir.Var, str]) -> set[ir.Var]:
    """The variables computed in the offloaded part, constants' computations included."""
    for var, name in untils.items():
        if var in cuts or var in graph.params:
            raise InvalidArgument(f"--until: {name!r} is where the offloaded part begins; it must end behind that")
    region = graph.behind(untils, stop=cuts)
    needed = {v for var in region for v in graph.used(var)}
    for var, name in cuts.items():
        if var not in needed:
            ends = ", ".join(map(repr, untils.values()))
            raise InvalidArgument(
                f"--cut: {name!r} is not needed for {ends}, or only by way of another cut tensor; leave it out"
            )
    leaking = [p for p in graph.params if p in region]
    if leaking:
        raise InvalidArgument(_leak(graph, leaking[0], cuts, untils))
    varying = region & graph.from_inputs()
    for var, name in cuts.items():
        inside = graph.behind([var]) & varying
        if inside:
            raise InvalidArgument(
                f"--cut: {name!r} is itself computed from {_some(graph, inside)}, which the offloaded part computes; "
                "it cannot feed itself"
            )
    return region


def _leak(graph: Graph, param: ir.Var, cuts: dict[ir.Var, str], untils: dict[ir.Var, str]) -> str:
    """What to say of an input that reaches the offloaded part around the cut: from where to where, and the remedy."""
    way = graph.path(param, untils, avoid=cuts)
    before = graph.behind(cuts)
    leaves = max((i for i, v in enumerate(way) if v in before and graph.named(v)), default=0)
    # Of several cuts one may lie before another: the way may meet what is behind the one and leave before the other.
    joined = (i for i, v in enumerate(way) if i >= leaves and graph.behind([v]).intersection(cuts))
    joins = next(joined, len(way) - 1)
    around = [graph.name(v) for v in way[leaves : joins + 1] if graph.named(v)]
    if len(around) > 6:
        around = [*around[:3], "...", *around[-2:]]
    return (
        f"--cut: {', '.join(map(repr, cuts.values()))} does not separate the graph: input {graph.name(param)!r} also "
        f"reaches the offloaded part around it, by {' -> '.join(around)}; add {around[0]!r} to it, or cut elsewhere "
        "(see --list-cuts)"
    )


def _check_apart(graph: Graph, parts: Sequence[Part]) -> None:
    for i, part in enumerate(parts):
        for other in parts[:i]:
            both = part.varying & other.varying
            if both:
                raise InvalidArgument(
                    f"regions {other.name!r} and {part.name!r} overlap: both compute {_some(graph, both)}; end one of "
                    "them earlier (--until), or begin the other later (--cut)"
                )


def _check_no_circle(graph: Graph, parts: Sequence[Part]) -> None:
    """What a region needs of others must be there before it is called, and all of a region is called at once."""
    owner = {var: part for part in parts for var in part.untils}
    needs: dict[str, dict[str, str]] = {}
    for part in parts:
        needs[part.name] = {}
        for cut, name in part.cuts.items():
            between = graph.behind([cut], stop=owner)
            # A walk that stops at an end of a region does not include it.
            ends = [v for v in owner if v is cut or any(v in graph.used(b) for b in between)]
            for end in ends:
                of = owner[end]
                if of is not part:
                    needs[part.name].setdefault(of.name, f"{of.untils[end]!r} of {of.name!r} (for {name!r})")
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        circle: list[str] = error.args[1][::-1]  # each is needed by the next
        steps = ", ".join(f"{one!r} needs {needs[one][other]}" for one, other in pairwise(circle))
        raise InvalidArgument(f"regions depend on each other in a circle: {steps}; cut one of them in two") from None


def _check_rest_needs_nothing_else(graph: Graph, part: Part) -> None:
    hidden = part.varying - set(part.untils)
    needed: dict[str, str] = {}
    for binding in graph.bindings:
        if binding.var not in part.inside:
            for var in graph.used(binding.var):
                if var in hidden:
                    needed.setdefault(graph.name(var), repr(graph.name(binding.var)))
    for name in graph.outputs:
        if graph.tensors[name] in hidden:
            needed[name] = "an output of the model"
    if needed:
        listed = ", ".join(f"{name!r} (for {use})" for name, use in list(needed.items())[:5])
        raise InvalidArgument(
            f"--until: the rest of the model needs more of what the offloaded part computes; name these, too: {listed}"
        )


def _some(graph: Graph, variables: set[ir.Var]) -> str:
    """The first of the variables, in graph order, that the user has a name for."""
    ordered = [b.var for b in graph.bindings if b.var in variables]
    return repr(graph.name(next((v for v in ordered if graph.named(v)), ordered[0])))
