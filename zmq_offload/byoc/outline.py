"""Outline regions of a model: each becomes a function that `main` calls once.

The functions have BYOC's attributes (`Codegen`, `global_symbol`), as those that `partition` makes by patterns, so all
later steps are shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import tvm
from tvm import ir, relax, tirx

from zmq_offload.byoc.codegen import CODEGEN, INPUT_NAMES, OUTPUT_NAMES, offloaded_functions
from zmq_offload.byoc.extents import Extents, scaled
from zmq_offload.byoc.graph import Graph
from zmq_offload.byoc.order import topological_order
from zmq_offload.byoc.parameters import LARGEST, MAXIMUMS, maximums_of, told_by, with_symbols
from zmq_offload.byoc.region import Region, ResolvedRegion, resolve_regions
from zmq_offload.byoc.tvm_internals import CODEGEN_ATTRIBUTE
from zmq_offload.errors import InvalidArgument

REGION = "offloaded_"
"""Prefix of the names of regions' functions; the number of the region follows."""


def outline(mod: tvm.IRModule, graph: Graph, cut: Sequence[str], until: Sequence[str] | None = None) -> tvm.IRModule:
    """Outline a single region, from `cut` to `until`."""
    return outline_regions(mod, graph, [Region("region", cut, until)])[0]


def outline_regions(mod: tvm.IRModule, graph: Graph, regions: Sequence[Region]) -> tuple[tvm.IRModule, list[Region]]:
    """Split `graph`, the `main` of `mod`, into `main` and one function for each region.

    A region's function takes the tensors of its cuts and returns those of its ends; both keep the user's names as
    attributes. `main` keeps all other bindings, and calls each region as early as its inputs allow. Bindings that no
    result needs are removed; other functions of `mod` stay.

    Returns the module, and the regions in the order of its `offloaded_functions`. Raises InvalidArgument as
    `resolve_regions` does, and if a region needs a symbolic extent that none of its inputs has.
    """
    resolved = resolve_regions(graph, regions)
    builder = relax.BlockBuilder(tvm.IRModule({gv: f for gv, f in mod.functions.items() if gv.name_hint != "main"}))
    largest = (mod.attrs or {}).get(LARGEST, {})
    callees = [
        builder.add_func(_region_function(graph, region, f"{REGION}{i}", largest), f"{REGION}{i}")
        for i, region in enumerate(resolved)
    ]
    builder.add_func(_main_function(graph, resolved, callees, mod["main"]), "main")
    outlined = _tidy(builder.get())
    called = [int(str(gv.name_hint).removeprefix(REGION)) for gv in offloaded_functions(outlined)]
    return outlined, [regions[i] for i in called]


def undivided(mod: tvm.IRModule, graph: Graph) -> tvm.IRModule:
    """The module of `graph`, the `main` of `mod`, without a region: `main` returns the model's outputs."""
    functions = {gv: f for gv, f in mod.functions.items() if gv.name_hint != "main"}
    builder = relax.BlockBuilder(tvm.IRModule(functions))
    builder.add_func(_main_function(graph, [], [], mod["main"]), "main")
    return _tidy(builder.get())


def _tidy(mod: tvm.IRModule) -> tvm.IRModule:
    steps = [
        relax.transform.Normalize(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]
    return tvm.transform.Sequential(steps)(mod)


def _region_function(graph: Graph, region: ResolvedRegion, symbol: str, largest: Mapping[str, int]) -> relax.Function:
    params = [relax.Var(name, var.ty) for var, name in region.cuts.items()]
    # Each cut variable is bound to its parameter, so that the region's bindings need no change.
    body = [relax.VarBinding(var, param) for var, param in zip(region.cuts, params, strict=True)]
    body += [b for b in graph.bindings if b.var in region.inside]
    result = relax.Tuple(list(region.untils)) if len(region.untils) > 1 else next(iter(region.untils))
    function = with_symbols(_function(graph.dataflow, params, body, result))
    unknown = relax.analysis.free_symbolic_vars(function)
    if unknown:
        raise InvalidArgument(
            f"--cut: the region needs the symbolic extent {unknown[0].name}, which is not a dimension of "
            f"{', '.join(map(repr, region.cuts.values()))}; {_divisor(region, unknown[0])}cut at a tensor that has it"
        )
    attrs = {
        CODEGEN_ATTRIBUTE: CODEGEN,
        "global_symbol": symbol,
        INPUT_NAMES: list(region.cuts.values()),
        OUTPUT_NAMES: list(region.untils.values()),
        MAXIMUMS: maximums_of([var.ty for var in region.cuts], largest),
    }
    return relax.utils.copy_with_new_vars(function.with_attrs(attrs))


def _divisor(region: ResolvedRegion, symbol: tirx.Var) -> str:
    """The advice to state a divisor of a symbol, if the extents of a region's inputs tell its value then."""
    extents = Extents()
    dims = [dim for var in region.cuts for dim in var.ty.shape if symbol in extents.symbols(dim)]
    for size in (2, 4, 8, 16, 32, 64):
        if any(extents.linear(scaled(dim, size)) is not None for dim in dims):
            return f"state a divisor in --input, {size}*{symbol.name} for {symbol.name}, or "
    return ""


def _main_function(
    graph: Graph, resolved: Sequence[ResolvedRegion], callees: Sequence[ir.GlobalVar], original: relax.Function
) -> relax.Function:
    body: list[relax.Binding] = []
    for step in _ordered_steps(graph, resolved):
        if isinstance(step, ResolvedRegion):
            body += _call(step, callees[resolved.index(step)], relax.DataflowVar if graph.dataflow else relax.Var)
        else:
            body.append(step)
    results = [graph.tensors[name] for name in graph.outputs]
    result = relax.Tuple(results) if len(results) > 1 else results[0]
    return with_symbols(_function(graph.dataflow, list(graph.params), body, result).with_attrs(original.attrs))


def _ordered_steps(graph: Graph, resolved: Sequence[ResolvedRegion]) -> list[relax.Binding | ResolvedRegion]:
    """Return the device's steps in topological order: regions as early as possible, the others as in the graph."""
    offloaded = {var for region in resolved for var in region.varying}
    steps: list[relax.Binding | ResolvedRegion] = [*resolved, *(b for b in graph.bindings if b.var not in offloaded)]
    makers = {var: i for i, step in enumerate(steps) for var in _made_by(step)}
    needs = [{makers[var] for var in _used_by(graph, step) if var in makers} for step in steps]
    return [steps[i] for i in topological_order(needs, range(len(steps)))]


def _made_by(step: relax.Binding | ResolvedRegion) -> Iterable[ir.Var]:
    return step.untils if isinstance(step, ResolvedRegion) else [step.var]


def _used_by(graph: Graph, step: relax.Binding | ResolvedRegion) -> Iterable[ir.Var]:
    return step.cuts if isinstance(step, ResolvedRegion) else graph.used(step.var)


def _call(region: ResolvedRegion, callee: ir.GlobalVar, new: type[ir.Var]) -> list[relax.Binding]:
    """Call a region and bind its results. Tensors between are of the class `new`."""
    ends = list(region.untils)
    call = relax.Call(callee, list(region.cuts))
    if len(ends) == 1:
        return _bound(region, ends[0], call, new)
    pack = new("offloaded", relax.TupleType([_told(region, v.ty) for v in ends]))
    unpacked = [b for i, var in enumerate(ends) for b in _bound(region, var, relax.TupleGetItem(pack, i), new)]
    return [relax.VarBinding(pack, call), *unpacked]


def _bound(region: ResolvedRegion, var: ir.Var, value: relax.Expr, new: type[ir.Var]) -> list[relax.Binding]:
    """Bind a result of a region. Extents that only its run tells are read from the result."""
    told = _told(region, var.ty)
    if told.same_as(var.ty):
        return [relax.VarBinding(var, value)]
    result = new("result", told)
    return [relax.VarBinding(result, value), relax.MatchCast(var, result, var.ty)]


def _told(region: ResolvedRegion, ty: ir.Type) -> ir.Type:
    """What a call tells of a result's type: no shape, if it has an extent that no input of the region has."""
    if told_by([cut.ty for cut in region.cuts], ty):
        return ty
    return relax.TensorType(dtype=ty.dtype, ndim=ty.ndim)


def _function(dataflow: bool, params: list[ir.Var], body: list[relax.Binding], result: relax.Expr) -> relax.Function:
    returned = relax.Var("result", result.ty)
    bindings = [*body, relax.VarBinding(returned, result)]
    block = relax.DataflowBlock(bindings) if dataflow else relax.BindingBlock(bindings)
    return relax.Function(params, relax.SeqExpr([block], returned), returned.ty)
