"""Put the definitions of extents before their uses again.

FuseOps orders the bindings of a block by the tensors that they need. It does not see that a shape needs the extents
that a MatchCast defines. With a few tens of such extents, uses come before definitions, and TVM cannot build the module
("PrimExpr ... has not been computed").
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import ir, relax
from tvm.relax.analysis import definable_tir_vars_in_type, free_vars, tir_vars_in_type

from zmq_offload.byoc.order import topological_order


def definitions_first(mod: tvm.IRModule) -> tvm.IRModule:
    """Order the bindings of each dataflow block by tensors and extents. Bindings that need not move stay in order."""
    ordered = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv, f in mod.functions.items():
        if isinstance(f, relax.Function) and isinstance(f.body, relax.SeqExpr):
            blocks = [_ordered(b) if isinstance(b, relax.DataflowBlock) else b for b in f.body.blocks]
            body = relax.SeqExpr(blocks, f.body.body)
            ordered[gv] = relax.Function(f.params, body, f.ret_ty, f.is_pure, f.attrs, f.span)
    return ordered


def _ordered(block: relax.DataflowBlock) -> relax.DataflowBlock:
    bindings = [*block.bindings]
    if not any(isinstance(binding, relax.MatchCast) for binding in bindings):
        return block
    definers: dict[ir.Var, int] = {}
    for number, binding in enumerate(bindings):
        definers[binding.var] = number
        if isinstance(binding, relax.MatchCast):
            for extent in definable_tir_vars_in_type(binding.ty):
                definers.setdefault(extent, number)
    needs = [
        {definers[var] for var in _used(binding) if var in definers and definers[var] != number}
        for number, binding in enumerate(bindings)
    ]
    if all(other < number for number, needed in enumerate(needs) for other in needed):
        return block
    return relax.DataflowBlock([bindings[i] for i in topological_order(needs, range(len(bindings)))])


def _used(binding: relax.Binding) -> Sequence[ir.Var]:
    """The variables and extents that a binding needs; among them are those that it defines itself."""
    types = [binding.var.ty, *(binding.value.ty_args if isinstance(binding.value, ir.Call) else ())]
    return [*free_vars(binding.value), *(extent for ty in types for extent in tir_vars_in_type(ty))]
