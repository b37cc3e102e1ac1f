"""Cut regions out of a model by the tensors where they begin and end.

A region becomes a function of its own with the attributes of BYOC (`Codegen`, `global_symbol`), called once from
`main`: the same form that `partition` reaches by patterns, so that everything behind it is shared.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import ir, relax

from zmq_offload.byoc.codegen import CODEGEN, INPUT_NAMES, OUTPUT_NAMES, offloaded_functions
from zmq_offload.byoc.graph import Graph
from zmq_offload.byoc.order import in_order
from zmq_offload.byoc.region import Part, Region, find_parts
from zmq_offload.errors import InvalidArgument

REGION = "offloaded_"
"""What the functions of regions are called: this, and the number of the region."""


def outline(mod: tvm.IRModule, graph: Graph, cut: Sequence[str], until: Sequence[str] | None = None) -> tvm.IRModule:
    """`outline_regions` for a single one, from `cut` to `until`."""
    return outline_regions(mod, graph, [Region("region", cut, until)])[0]


def outline_regions(mod: tvm.IRModule, graph: Graph, regions: Sequence[Region]) -> tuple[tvm.IRModule, list[Region]]:
    """Split `graph`, the `main` of `mod`, into `main` and one offloaded function for each region.

    Returns the module, and the regions in the order of its `offloaded_functions`. Raises InvalidArgument as
    `find_parts` does.
    """
    parts = find_parts(graph, regions)
    builder = relax.BlockBuilder(tvm.IRModule({gv: f for gv, f in mod.functions.items() if gv.name_hint != "main"}))
    callees = [
        builder.add_func(_region_function(graph, p, f"{REGION}{i}"), f"{REGION}{i}") for i, p in enumerate(parts)
    ]
    builder.add_func(_main_function(graph, parts, callees, mod["main"]), "main")
    tidy = tvm.transform.Sequential(
        [
            relax.transform.Normalize(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.DeadCodeElimination(),
        ]
    )
    outlined = tidy(builder.get())
    called = [int(str(gv.name_hint).removeprefix(REGION)) for gv in offloaded_functions(outlined)]
    return outlined, [regions[i] for i in called]


def _region_function(graph: Graph, part: Part, symbol: str) -> relax.Function:
    params = [relax.Var(name, var.ty) for var, name in part.cuts.items()]
    # Binding each cut variable to its parameter lets the region's own bindings be used unchanged.
    body = [relax.VarBinding(var, param) for var, param in zip(part.cuts, params, strict=True)]
    body += [b for b in graph.bindings if b.var in part.inside]
    result = relax.Tuple(list(part.untils)) if len(part.untils) > 1 else next(iter(part.untils))
    function = _function(graph.dataflow, params, body, result)
    unknown = relax.analysis.free_symbolic_vars(function)
    if unknown:
        raise InvalidArgument(
            f"--cut: the offloaded part needs the symbolic extent {unknown[0].name}, which no dimension of "
            f"{', '.join(map(repr, part.cuts.values()))} is; cut at a tensor that has it"
        )
    attrs = {
        "Codegen": CODEGEN,
        "global_symbol": symbol,
        INPUT_NAMES: list(part.cuts.values()),
        OUTPUT_NAMES: list(part.untils.values()),
    }
    return relax.utils.copy_with_new_vars(function.with_attrs(attrs))


def _main_function(
    graph: Graph, parts: Sequence[Part], callees: Sequence[ir.GlobalVar], original: relax.Function
) -> relax.Function:
    body: list[relax.Binding] = []
    for step in _in_order(graph, parts):
        if isinstance(step, Part):
            body += _call(step, callees[parts.index(step)])
        else:
            body.append(step)
    results = [graph.tensors[name] for name in graph.outputs]
    result = relax.Tuple(results) if len(results) > 1 else results[0]
    return _function(graph.dataflow, list(graph.params), body, result).with_attrs(original.attrs)


def _in_order(graph: Graph, parts: Sequence[Part]) -> list[relax.Binding | Part]:
    """The steps of the device in an order in which each has what it needs: regions as soon as they can be called, the
    others as they stood in the graph, which may have had steps before and after a region in any order."""
    offloaded = {var for part in parts for var in part.varying}
    steps: list[relax.Binding | Part] = [*parts, *(b for b in graph.bindings if b.var not in offloaded)]
    makers = {var: i for i, step in enumerate(steps) for var in (step.untils if isinstance(step, Part) else [step.var])}
    needs = [
        {makers[v] for v in (step.cuts if isinstance(step, Part) else graph.used(step.var)) if v in makers}
        for step in steps
    ]
    return [steps[i] for i in in_order(needs, range(len(steps)))]


def _call(part: Part, callee: ir.GlobalVar) -> list[relax.Binding]:
    ends = list(part.untils)
    call = relax.Call(callee, list(part.cuts))
    if len(ends) == 1:
        return [relax.VarBinding(ends[0], call)]
    pack = relax.DataflowVar("offloaded", relax.TupleType([v.ty for v in ends]))
    unpacked = [relax.VarBinding(var, relax.TupleGetItem(pack, i)) for i, var in enumerate(ends)]
    return [relax.VarBinding(pack, call), *unpacked]


def _function(dataflow: bool, params: list[ir.Var], body: list[relax.Binding], result: relax.Expr) -> relax.Function:
    returned = relax.Var("result", result.ty)
    bindings = [*body, relax.VarBinding(returned, result)]
    block = relax.DataflowBlock(bindings) if dataflow else relax.BindingBlock(bindings)
    return relax.Function(params, relax.SeqExpr([block], returned), returned.ty)
