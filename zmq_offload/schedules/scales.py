"""The pass after `simplify`: factors and offsets for each channel become part of the weights and the bias before them.

Batch normalization after a convolution is such a factor and an offset. Folded, it costs nothing.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from tvm import relax
from tvm.ir import Call, Expr, IRModule, Var
from tvm.relax.expr_functor import mutator

from zmq_offload.schedules.operators import Array
from zmq_offload.schedules.simplify import GraphRewriter, constant_expr, rewritten
from zmq_offload.schedules.tvm_internals import operator_name

_CHANNELS_FIRST = {
    "relax.nn.conv1d": ("NCW", "OIW"),
    "relax.nn.conv2d": ("NCHW", "OIHW"),
    "relax.nn.conv3d": ("NCDHW", "OIDHW"),
}


@mutator
class _Scales(GraphRewriter):
    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        self._readers = _readers(mod)

    def visit_call_(self, call: Call) -> Expr:
        call = self.operands(call)
        name = operator_name(call)
        if name not in ("relax.multiply", "relax.add") or str(call.ty.dtype) != "float32":
            return call
        for expr, other in (call.args, reversed(call.args)):
            constant = self.array(other)
            if constant is None or self._readers[expr] != 1:
                continue
            result = self._scaled(expr, constant) if name == "relax.multiply" else self._shifted(expr, constant)
            if result is not None:
                return result
        return call

    def _scaled(self, expr: Expr, factor: Array) -> Expr | None:
        """Return `expr * factor` with the factor in the weights of `expr`; None if that cannot be."""
        call, rank = self.bound(expr), expr.ty.ndim
        name = operator_name(call)
        if self._readers[expr] != 1 or factor.ndim > rank:
            return None
        if name == "relax.add":
            for inner, other in (call.args, reversed(call.args)):
                offset = self.array(other)
                if offset is None or inner.ty.ndim != rank or not _one_axis(offset, factor, rank):
                    continue
                scaled = self._scaled(inner, factor)
                if scaled is not None:
                    return relax.op.add(self.builder_.emit(scaled), constant_expr(offset * factor))
            return None
        channels = 1 if name in _CHANNELS_FIRST else rank - 1 if name == "relax.matmul" else None
        if channels is None or not _along(factor, channels, rank):
            return None
        weight = self.array(call.args[1])
        # A weight of 16 bits stays one.
        if weight is None or weight.dtype != np.float32 or self.half(call.args[1]) is not None:
            return None
        if name == "relax.matmul":
            scaled_weight = weight * factor.reshape(-1) if weight.ndim == 2 else None
        else:
            layouts = (str(call.attrs.data_layout), str(call.attrs.kernel_layout))
            shape = (-1, *[1] * (weight.ndim - 1))
            scaled_weight = weight * factor.reshape(shape) if layouts == _CHANNELS_FIRST[name] else None
        if scaled_weight is None:
            return None
        return Call(call.op, [call.args[0], constant_expr(scaled_weight)], call.attrs, call.ty_args)

    def _shifted(self, expr: Expr, offset: Array) -> Expr | None:
        """Return `expr + offset`, where `expr` adds a constant already, with one addition."""
        call = self.bound(expr)
        if operator_name(call) != "relax.add":
            return None
        for inner, other in (call.args, reversed(call.args)):
            constant = self.array(other)
            if constant is not None and inner.ty.ndim == expr.ty.ndim and _one_axis(constant, offset, expr.ty.ndim):
                return relax.op.add(inner, constant_expr(constant + offset))
        return None


def _readers(mod: IRModule) -> Counter[Expr]:
    """Count the bindings and results that read each variable."""
    counts: Counter[Expr] = Counter()
    for func in mod.functions.values():
        if isinstance(func, relax.Function) and isinstance(func.body, relax.SeqExpr):
            for block in func.body.blocks:
                for binding in block.bindings:
                    counts.update(v for v in relax.analysis.free_vars(binding.value) if isinstance(v, Var))
            counts.update(relax.analysis.free_vars(func.body.body))
    return counts


def _along(value: Array, axis: int, rank: int) -> bool:
    """Whether a constant that broadcasts to `rank` axes varies along `axis` only."""
    shape = (1,) * (rank - value.ndim) + value.shape
    return all(extent == 1 for at, extent in enumerate(shape) if at != axis)


def _one_axis(a: Array, b: Array, rank: int) -> bool:
    """Whether two constants vary along one axis, the same for both: their product is not larger than they are."""
    return any(_along(a, axis, rank) and _along(b, axis, rank) for axis in range(rank))


def fold_scales(mod: IRModule) -> IRModule:
    """Return `mod` with factors and offsets folded. Dead code elimination must follow."""
    return rewritten(mod, _Scales(mod))
