"""Calls of regions whose results have extents that only their run tells: the call returns the tensors.

Other calls write to memory that the device's graph allocates, which needs their shapes beforehand.
"""

from __future__ import annotations

import tvm
from tvm import ir, relax

from zmq_offload.byoc.tvm_internals import CALL_PACKED, is_call_of


def with_returned_results(mod: tvm.IRModule) -> tvm.IRModule:
    """The device's module, in which calls with results of unknown shape return them."""
    main = mod["main"]
    if not any(_unknown(b.value) for block in main.body.blocks for b in block.bindings):
        return mod
    changed = tvm.IRModule(mod.functions, attrs=mod.attrs)
    changed["main"] = _Returning().visit_expr(main)
    return relax.transform.Normalize()(changed)


def _unknown(value: relax.Expr) -> bool:
    if not is_call_of(value, CALL_PACKED):
        return False
    types = value.ty.fields if isinstance(value.ty, relax.TupleType) else [value.ty]
    return any(ty.shape is None for ty in types)


@relax.expr_functor.mutator
class _Returning(relax.PyExprMutator):  # type: ignore[misc]  # TVM has no types
    def visit_call_(self, call: ir.Call) -> relax.Expr:
        if not _unknown(call):
            return super().visit_call_(call)
        function, inputs = call.args
        return relax.op.call_pure_packed(function, *inputs.fields, ty_args=call.ty)
