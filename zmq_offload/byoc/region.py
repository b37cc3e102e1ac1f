"""Resolve regions against a model's graph: find the operators that a region's tensors enclose, and check them."""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from tvm import ir

from zmq_offload.byoc.carried import both_sides, carried
from zmq_offload.byoc.encoding import Wire
from zmq_offload.byoc.graph import Graph
from zmq_offload.errors import InvalidArgument


@dataclass(frozen=True)
class Region:
    """A region of a model that runs on workers, as the model `name`.

    Parameters
    ----------
    name : str
        Name of the model in the model repository.
    cut : str or sequence of str
        Names of the tensors at which the region begins: its inputs.
    until : str or sequence of str, optional
        Names of the tensors at which the region ends: its outputs. Default: all outputs of the whole model that
        depend on `cut`.
    wire : {"float32", "float16", "int8"}, optional
        How the float32 tensors at the region's boundary travel. Default: the `wire` of `compile_model`.

    Examples
    --------
    >>> Region("heads", cut=["features"], until=["boxes", "scores"], wire="float16")
    Region(name='heads', cut=['features'], until=['boxes', 'scores'], wire='float16')
    """

    name: str
    cut: Sequence[str]
    until: Sequence[str] | None = None
    wire: Wire | None = None


@dataclass(frozen=True, eq=False)
class ResolvedRegion:
    """A region as variables of a graph.

    `cuts` and `untils` map boundary variables to the user's names; `cuts` includes what the region takes along
    (`carried`). `inside` are all variables that the region computes; `varying` are those of them that depend on the
    model's inputs and that only the region computes.
    """

    name: str
    cuts: dict[ir.Var, str]
    untils: dict[ir.Var, str]
    inside: set[ir.Var]
    varying: set[ir.Var]


def check_distinct(regions: Sequence[Region]) -> None:
    """Raise InvalidArgument if two regions have the same name."""
    names = [region.name for region in regions]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument(f"two regions are named {name!r}; each becomes a model and needs its own name")


def resolve_regions(graph: Graph, regions: Sequence[Region]) -> list[ResolvedRegion]:
    """Find the variables of each region in `graph`, in the order of `regions`.

    A region contains every variable on a path from its cuts to its ends. Raises InvalidArgument if

    - a tensor does not exist, or two regions have the same name;
    - an input of the model reaches the region around its cuts, by more than cheap operators;
    - the rest of the model needs a tensor from inside the region that is not one of its ends;
    - a region needs its own result, regions overlap, or regions need each other's results in a cycle.
    """
    if not regions:
        raise InvalidArgument("no region given; name at least one region to offload")
    check_distinct(regions)
    resolved = []
    for region in regions:
        with _naming(region.name, regions):
            resolved.append(_resolve(graph, region))
    _check_disjoint(graph, resolved)
    _check_no_cycle(graph, resolved)
    for found in resolved:
        with _naming(found.name, regions):
            _check_outputs_suffice(graph, found)
    return resolved


@contextmanager
def _naming(name: str, regions: Sequence[Region]) -> Iterator[None]:
    """Prefix errors with the region's name if there are several regions."""
    try:
        yield
    except InvalidArgument as error:
        raise (InvalidArgument(f"region {name!r}: {error}") if len(regions) > 1 else error) from None


def _resolve(graph: Graph, region: Region) -> ResolvedRegion:
    cuts = _variables(graph, region.cut, "--cut")
    until = _dependent_outputs(graph, list(cuts)) if region.until is None else region.until
    untils = _variables(graph, until, "--until")
    for var in carried(graph, cuts, untils) or ():
        cuts.setdefault(var, graph.name(var))
    inside, varying = _enclosed(graph, cuts, untils)
    return ResolvedRegion(region.name, cuts, untils, inside, varying)


def _variables(graph: Graph, names: Sequence[str], option: str) -> dict[ir.Var, str]:
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
        if isinstance(value, ir.Var) and value not in cuts and graph.upstream([value]).intersection(cuts):
            chosen.setdefault(value, name)
    if not chosen:
        names = ", ".join(repr(graph.name(c)) for c in cuts)
        raise InvalidArgument(f"--cut: no output of the model is computed from {names}, there is nothing to offload")
    return list(chosen.values())


def _enclosed(graph: Graph, cuts: dict[ir.Var, str], untils: dict[ir.Var, str]) -> tuple[set[ir.Var], set[ir.Var]]:
    """Return the variables that the region computes, including those that depend on constants only, and those that
    depend on the inputs and that only the region computes."""
    for var, name in untils.items():
        if var in cuts or var in graph.params:
            raise InvalidArgument(f"--until: {name!r} is where the region begins; it must end after that")
    inside = graph.upstream(untils, stop=cuts)
    needed = {v for var in inside for v in graph.used(var)}
    for var, name in cuts.items():
        if var not in needed:
            ends = ", ".join(map(repr, untils.values()))
            raise InvalidArgument(
                f"--cut: {name!r} is not needed for {ends}, or only through another cut tensor; leave it out"
            )
    leaking = [p for p in graph.params if p in inside]
    if leaking:
        raise InvalidArgument(_leak(graph, leaking[0], cuts, untils))
    varying = (inside & graph.from_inputs()) - (both_sides(graph, cuts, inside) - set(untils))
    for var, name in cuts.items():
        own = graph.upstream([var]) & varying
        if own:
            raise InvalidArgument(
                f"--cut: {name!r} is itself computed from {_first_named(graph, own)}, which the region computes; "
                "a region cannot feed itself"
            )
    return inside, varying


def _leak(graph: Graph, param: ir.Var, cuts: dict[ir.Var, str], untils: dict[ir.Var, str]) -> str:
    """Explain how an input reaches the region around its cuts: the path, and the tensor to add."""
    path = graph.path(param, untils, avoid=cuts)
    before = graph.upstream(cuts)
    leaves = max((i for i, v in enumerate(path) if v in before and graph.named(v)), default=0)
    # One cut may lie before another: the path may join after the first and leave before the second.
    joined = (i for i, v in enumerate(path) if i >= leaves and graph.upstream([v]).intersection(cuts))
    joins = next(joined, len(path) - 1)
    around = [graph.name(v) for v in path[leaves : joins + 1] if graph.named(v)]
    if len(around) > 6:
        around = [*around[:3], "...", *around[-2:]]
    return (
        f"--cut: {', '.join(map(repr, cuts.values()))} does not separate the graph: input {graph.name(param)!r} also "
        f"reaches the region around it, by {' -> '.join(around)}; add {around[0]!r} to --cut, or cut elsewhere "
        "(see --list-cuts)"
    )


def _check_disjoint(graph: Graph, resolved: Sequence[ResolvedRegion]) -> None:
    for i, region in enumerate(resolved):
        for other in resolved[:i]:
            both = region.varying & other.varying
            if both:
                raise InvalidArgument(
                    f"regions {other.name!r} and {region.name!r} overlap: both compute {_first_named(graph, both)}; "
                    "end one of them earlier (--until), or begin the other later (--cut)"
                )


def _check_no_cycle(graph: Graph, resolved: Sequence[ResolvedRegion]) -> None:
    """A region runs as one call, so everything that it needs from other regions must exist before that call."""
    owner = {var: region for region in resolved for var in region.untils}
    needs: dict[str, dict[str, str]] = {}
    for region in resolved:
        needs[region.name] = {}
        for cut, name in region.cuts.items():
            between = graph.upstream([cut], stop=owner)
            # `between` excludes the ends at which the walk stopped; find them by their users.
            ends = [v for v in owner if v is cut or any(v in graph.used(b) for b in between)]
            for end in ends:
                other = owner[end]
                if other is not region:
                    needs[region.name].setdefault(other.name, f"{other.untils[end]!r} of {other.name!r} (for {name!r})")
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        cycle: list[str] = error.args[1][::-1]  # each needs the next
        steps = ", ".join(f"{one!r} needs {needs[one][other]}" for one, other in pairwise(cycle))
        raise InvalidArgument(f"regions depend on each other in a cycle: {steps}; cut one of them in two") from None


def _check_outputs_suffice(graph: Graph, region: ResolvedRegion) -> None:
    hidden = region.varying - set(region.untils)
    needed: dict[str, str] = {}
    for binding in graph.bindings:
        if binding.var not in region.inside:
            for var in graph.used(binding.var):
                if var in hidden:
                    needed.setdefault(graph.name(var), repr(graph.name(binding.var)))
    for name in graph.outputs:
        if graph.tensors[name] in hidden:
            needed[name] = "an output of the model"
    if needed:
        listed = ", ".join(f"{name!r} (for {use})" for name, use in list(needed.items())[:5])
        raise InvalidArgument(
            f"--until: the rest of the model needs more tensors from inside the region; add these: {listed}"
        )


def _first_named(graph: Graph, variables: set[ir.Var]) -> str:
    """Return the first of the variables, in graph order, that has a user's name."""
    ordered = [b.var for b in graph.bindings if b.var in variables]
    return repr(graph.name(next((v for v in ordered if graph.named(v)), ordered[0])))
