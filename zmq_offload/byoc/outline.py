"""Cut a region out of a model by the tensors where it begins and ends.

The region becomes a function of its own with the attributes of BYOC (`Codegen`, `global_symbol`), called once from
`main`: the same form that `partition` reaches by patterns, so that everything behind it is shared.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import ir, relax

from zmq_offload.byoc.codegen import CODEGEN, INPUT_NAMES, OUTPUT_NAMES
from zmq_offload.byoc.graph import Graph
from zmq_offload.errors import InvalidArgument

REGION = "offloaded_0"


def outline(mod: tvm.IRModule, graph: Graph, cut: Sequence[str], until: Sequence[str] | None = None) -> tvm.IRModule:
    """Split `graph`, the `main` of `mod`, into `main` and one offloaded function.

    `cut` names the tensors at which the offloaded part begins, `until` those at which it ends (default: the outputs
    of the model that depend on `cut`).

    Raises InvalidArgument for tensors that are not there or that do not enclose a part of the graph: an input of the
    model reaches the part around the cut, the rest of the model needs a tensor from inside it, the part feeds itself.
    """
    cuts = _distinct(graph, cut, "--cut")
    untils = _distinct(graph, until if until is not None else _dependent_outputs(graph, list(cuts)), "--until")
    region = _enclosed(graph, cuts, untils)
    _check_rest_needs_nothing_else(graph, region, untils)

    function = _region_function(graph, region, cuts, untils)
    builder = relax.BlockBuilder(tvm.IRModule({gv: f for gv, f in mod.functions.items() if gv.name_hint != "main"}))
    callee = builder.add_func(function, REGION)
    builder.add_func(_main_function(graph, region, cuts, untils, callee, mod["main"]), "main")
    tidy = tvm.transform.Sequential(
        [
            relax.transform.Normalize(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.DeadCodeElimination(),
        ]
    )
    return tidy(builder.get())


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
    joins = next((i for i, v in enumerate(way) if graph.behind([v]).intersection(cuts)), len(way) - 1)
    around = [graph.name(v) for v in way[leaves : joins + 1] if graph.named(v)]
    if len(around) > 6:
        around = [*around[:3], "...", *around[-2:]]
    return (
        f"--cut: {', '.join(map(repr, cuts.values()))} does not separate the graph: input {graph.name(param)!r} also "
        f"reaches the offloaded part around it, by {' -> '.join(around)}; add {around[0]!r} to it, or cut elsewhere "
        "(see --list-cuts)"
    )


def _check_rest_needs_nothing_else(graph: Graph, region: set[ir.Var], untils: dict[ir.Var, str]) -> None:
    hidden = (region & graph.from_inputs()) - set(untils)
    needed: dict[str, str] = {}
    for binding in graph.bindings:
        if binding.var not in region:
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


def _region_function(
    graph: Graph, region: set[ir.Var], cuts: dict[ir.Var, str], untils: dict[ir.Var, str]
) -> relax.Function:
    params = [relax.Var(name, var.ty) for var, name in cuts.items()]
    # Binding each cut variable to its parameter lets the region's own bindings be used unchanged.
    body = [relax.VarBinding(var, param) for var, param in zip(cuts, params, strict=True)]
    body += [b for b in graph.bindings if b.var in region]
    result = relax.Tuple(list(untils)) if len(untils) > 1 else next(iter(untils))
    function = _function(graph.dataflow, params, body, result)
    unknown = relax.analysis.free_symbolic_vars(function)
    if unknown:
        raise InvalidArgument(
            f"--cut: the offloaded part needs the symbolic extent {unknown[0].name}, which no dimension of "
            f"{', '.join(map(repr, cuts.values()))} is; cut at a tensor that has it"
        )
    attrs = {
        "Codegen": CODEGEN,
        "global_symbol": REGION,
        INPUT_NAMES: list(cuts.values()),
        OUTPUT_NAMES: list(untils.values()),
    }
    return relax.utils.copy_with_new_vars(function.with_attrs(attrs))


def _main_function(
    graph: Graph,
    region: set[ir.Var],
    cuts: dict[ir.Var, str],
    untils: dict[ir.Var, str],
    callee: ir.GlobalVar,
    original: relax.Function,
) -> relax.Function:
    varying = region & graph.from_inputs()
    # Graph order may interleave steps before and after the region, so the ones that need its results are moved behind.
    late = set(untils)
    before: list[relax.Binding] = []
    after: list[relax.Binding] = []
    for binding in graph.bindings:
        if binding.var in varying:
            continue
        if any(v in late for v in graph.used(binding.var)):
            late.add(binding.var)
            after.append(binding)
        else:
            before.append(binding)
    ends = list(untils)
    call = relax.Call(callee, list(cuts))
    if len(ends) == 1:
        returned = [relax.VarBinding(ends[0], call)]
    else:
        pack = relax.DataflowVar("offloaded", relax.TupleType([v.ty for v in ends]))
        returned = [relax.VarBinding(pack, call)]
        returned += [relax.VarBinding(var, relax.TupleGetItem(pack, i)) for i, var in enumerate(ends)]
    results = [graph.tensors[name] for name in graph.outputs]
    result = relax.Tuple(results) if len(results) > 1 else results[0]
    function = _function(graph.dataflow, list(graph.params), before + returned + after, result)
    return function.with_attrs(original.attrs)


def _function(dataflow: bool, params: list[ir.Var], body: list[relax.Binding], result: relax.Expr) -> relax.Function:
    returned = relax.Var("result", result.ty)
    bindings = [*body, relax.VarBinding(returned, result)]
    block = relax.DataflowBlock(bindings) if dataflow else relax.BindingBlock(bindings)
    return relax.Function(params, relax.SeqExpr([block], returned), returned.ty)
