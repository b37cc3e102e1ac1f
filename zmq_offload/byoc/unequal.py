"""Keep two sorts of kernels with symbolic extents out of fused kernels.

One has extents that are written in another way than its operand's. FuseTIR compares extents by their form: it does not
know that `(H // 2 - 1) * 2 + 2` is `H // 2 * 2`.

The other is given a symbol that is no extent of its tensors, as `P` in `arange(S) + P`. If no other kernel has it,
FuseOps makes it a parameter of the fused function, and FuseTIR fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tvm
import tvm_ffi
from tvm import ir, relax, tirx

from zmq_offload.byoc.extents import BINARY
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
                if _differ(given.fields, mod[callee].params) or _hidden(given.fields, binding.var):
                    yield callee


def _differ(given: Sequence[relax.Expr], params: Sequence[tirx.Var]) -> bool:
    """Whether extents of an operand and of a kernel's parameter have different forms. A bare symbol takes any extent,
    the same one everywhere: a kernel that is given `S` and `P` in this order does not take `P + S` for `S + P`."""
    pairs = [pair for arg, param in zip(given, params, strict=False) for pair in _extents(arg, param)]
    values: dict[tirx.Var, ir.Expr] = {}
    pairs.sort(key=lambda pair: not isinstance(pair[1], tirx.Var))
    return not all(_same(dim, own, values) for dim, own in pairs)


def _hidden(given: Sequence[relax.Expr], result: ir.Var) -> bool:
    """Whether a kernel is given a symbol that is no extent of its operands and its result."""
    types = [value.ty for value in (*given, result) if not isinstance(value.ty, ir.PrimType)]
    known = relax.analysis.tir_vars_in_type(relax.TupleType(types))
    numbers = [value for value in given if isinstance(value.ty, ir.PrimType) and isinstance(value, tirx.Var)]
    return any(all(not number.same_as(symbol) for symbol in known) for number in numbers)


def _same(given: ir.Expr, own: ir.Expr, values: dict[tirx.Var, ir.Expr]) -> bool:
    """Whether an extent has the form of a kernel's, whose symbols have `values`; a new one gets its value."""
    if isinstance(own, tirx.Var):
        return bool(tvm_ffi.structural_equal(values.setdefault(own, given), given))
    if isinstance(own, BINARY):
        return type(given) is type(own) and _same(given.a, own.a, values) and _same(given.b, own.b, values)
    return bool(tvm_ffi.structural_equal(given, own, map_free_vars=True))


def _extents(given: relax.Expr, param: tirx.Var) -> list[tuple[ir.Expr, ir.Expr]]:
    """Extents of an operand, each with the one of the kernel's parameter; a number that is passed is one, too."""
    if isinstance(given.ty, relax.TensorType):
        known = isinstance(given.ty.shape, relax.ShapeExpr)
        return list(zip(given.ty.shape.values, param.ty.shape, strict=True)) if known else []
    return [(given, param)] if isinstance(given.ty, ir.PrimType) else []
