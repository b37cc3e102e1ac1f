"""Make a shape once, however many tensors have it.

TVM makes the shape of each tensor with symbolic extents, and each number that a kernel is given of them, just before it
is needed. In a small model this takes as long as the kernels.
"""

from __future__ import annotations

from typing import TypeAlias

import tvm
from tvm import ir, relax

_MAKERS = ("vm.builtin.make_shape", "vm.builtin.make_prim_value")

_Key: TypeAlias = tuple[str, ir.Var, tuple[int, ...]]


def share_shapes(mod: tvm.IRModule) -> tvm.IRModule:
    """Use a shape again in place of an equal one that is made later. Takes a module after VMShapeLower.

    A place on the shape heap is written once, before all that read it.
    """
    shared = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv, f in mod.functions.items():
        if isinstance(f, relax.Function) and isinstance(f.body, relax.SeqExpr):
            body = _Sharer({}, {}).sequence(f.body)
            shared[gv] = relax.Function(f.params, body, f.ret_ty, f.is_pure, f.attrs, f.span)
    return shared


class _Sharer:
    """Rebuilds a sequence. `made` are the shapes that are there; `instead` has the variables that replace others."""

    def __init__(self, made: dict[_Key, ir.Var], instead: dict[ir.Var, ir.Var]) -> None:
        self._made, self._instead = made, instead

    def sequence(self, sequence: relax.SeqExpr) -> relax.SeqExpr:
        blocks = []
        for block in sequence.blocks:
            rebound = (self._binding(binding) for binding in block.bindings)
            blocks.append(relax.BindingBlock([binding for binding in rebound if binding is not None]))
        return relax.SeqExpr(blocks, self._expr(sequence.body))

    def _binding(self, binding: relax.Binding) -> relax.Binding | None:
        key = _key(binding.value)
        if key is not None and key in self._made:
            self._instead[binding.var] = self._made[key]
            return None
        if key is not None:
            self._made[key] = binding.var
        return relax.VarBinding(binding.var, self._expr(binding.value))

    def _expr(self, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, ir.Var):
            return self._instead.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._expr(field) for field in expr.fields])
        if isinstance(expr, ir.Call):
            args = [self._expr(arg) for arg in expr.args]
            return ir.Call(expr.op, args, expr.attrs, expr.ty_args, expr.span, expr.ty)
        if isinstance(expr, relax.If):
            # What a branch makes is not there after it.
            cond, *branches = expr.cond, expr.true_branch, expr.false_branch
            parts = [_Sharer(dict(self._made), dict(self._instead)).sequence(branch) for branch in branches]
            return relax.If(self._expr(cond), *parts)
        return expr


def _key(value: relax.Expr) -> _Key | None:
    """What a call makes of which shape heap; None for other expressions."""
    if not isinstance(value, ir.Call) or not isinstance(value.op, relax.ExternFunc):
        return None
    name = str(value.op.global_symbol)
    if name not in _MAKERS:
        return None
    heap, *rest = value.args
    return name, heap, tuple(int(number) for number in rest)
