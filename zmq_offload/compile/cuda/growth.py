"""Keep what spreads a small product over a large tensor out of the product's kernel.

FuseOps computes `x * scale` where `scale` is computed, as in a squeeze-and-excitation block. On a GPU the few blocks of
threads that compute a small product would then write all of the large tensor.
"""

from __future__ import annotations

from math import prod

import tvm
from tvm import relax, tirx
from tvm.ir import Call, Expr, GlobalVar, IRModule, Var

from zmq_offload.byoc.tvm_internals import CALL_TIR, is_call_of
from zmq_offload.schedules.tvm_internals import FUSABLE

_PATTERN = "op_pattern"
_BROADCAST, _INJECTIVE = 1, 2
"""Values of that attribute: a kernel with the second one is not fused after a product."""

_TIMES = 4
"""How many times as large as an operand a result is that spreads it."""


def isolate_growth(mod: IRModule) -> IRModule:
    """Mark such kernels, after LegalizeOps and AnnotateTIROpPattern, so that FuseOps begins a kernel with them."""
    spreads: set[GlobalVar] = set()
    others: set[GlobalVar] = set()
    for function in mod.functions.values():
        if not isinstance(function, relax.Function) or not isinstance(function.body, relax.SeqExpr):
            continue
        bindings = [b for block in function.body.blocks for b in block.bindings]
        made = {b.var: b.value for b in bindings if is_call_of(b.value, CALL_TIR)}
        for var, call in made.items():
            if _pattern(mod, call) <= _BROADCAST:
                (spreads if _spreads(mod, made, var, call) else others).add(call.args[0])
    marked = spreads - others
    if not marked:
        return mod
    changed = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv in marked:
        changed[gv] = mod[gv].with_attr(_PATTERN, _INJECTIVE)
    return changed


def _spreads(mod: IRModule, made: dict[Var, Call], var: Var, call: Call) -> bool:
    """Whether an operand of a call comes from a product, and is far smaller than the result."""
    size = _size(var)
    return any(
        size >= _TIMES * _size(operand) > 0 and _of_product(mod, made, operand)
        for operand in call.args[1].fields
        if operand in made
    )


def _of_product(mod: IRModule, made: dict[Var, Call], value: Expr) -> bool:
    """Whether a product, and then only operators for each element, compute a value."""
    call = made.get(value)
    if call is None:
        return False
    pattern = _pattern(mod, call)
    if pattern == FUSABLE:
        return True
    return pattern <= _BROADCAST and any(_of_product(mod, made, operand) for operand in call.args[1].fields)


def _pattern(mod: IRModule, call: Call) -> int:
    return int((mod[call.args[0]].attrs or {}).get(_PATTERN, FUSABLE + 1))


def _size(value: Expr) -> int:
    """The elements of a tensor; 0 if it is none, or has a symbolic extent."""
    shape = getattr(value.ty, "shape", None)
    extents = list(shape.values) if isinstance(shape, relax.ShapeExpr) else []
    return prod(map(int, extents)) if extents and all(isinstance(e, tirx.IntImm) for e in extents) else 0
