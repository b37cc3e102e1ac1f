"""Keep a kernel whose symbolic extents are written in another way than its operand's out of fused kernels.

FuseTIR compares extents by their form: it does not know that `(H // 2 - 1) * 2 + 2` is `H // 2 * 2`.
"""

from __future__ import annotations

from collections.abc import Iterator

import tvm
import tvm_ffi
from tvm import ir, relax, tirx

from zmq_offload.byoc.tvm_internals import CALL_TIR, is_call_of, unfusable


def isolate_unequal(mod: tvm.IRModule) -> tvm.IRModule:
    """Mark such kernels, after LegalizeOps and AnnotateTIROpPattern, so that FuseOps leaves them alone."""
    apart = {gv for function in mod.functions.values() for gv in _unequal(mod, function)}
    if not apart:
        return mod
    changed = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv in apart:
        changed[gv] = unfusable(mod[gv])
    return changed


def _unequal(mod: tvm.IRModule, function: ir.BaseFunc) -> Iterator[ir.GlobalVar]:
    if not isinstance(function, relax.Function) or not isinstance(function.body, relax.SeqExpr):
        return
    for block in function.body.blocks:
        for binding in block.bindings:
            if is_call_of(binding.value, CALL_TIR):
                callee, given = binding.value.args[:2]
                if any(map(_differ, given.fields, mod[callee].params)):
                    yield callee


def _differ(given: relax.Expr, param: tirx.Var) -> bool:
    """Whether extents of an operand and of a kernel's parameter have different forms. A bare symbol takes any."""
    if not isinstance(given.ty, relax.TensorType) or not isinstance(given.ty.shape, relax.ShapeExpr):
        return False
    return any(
        not isinstance(own, tirx.Var) and not tvm_ffi.structural_equal(dim, own, map_free_vars=True)
        for dim, own in zip(given.ty.shape.values, param.ty.shape, strict=True)
    )
