"""Fold operators on constants with NumPy.

TVM's FoldConstant compiles a library for each operator that it folds, which takes half of the time of compiling a real
network. This pass folds what importers apply to weights, indices, masks and sizes. FoldConstant does the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import ir, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from zmq_offload.protocol.payload import Array

MOST_CAST = 1 << 10
"""The most elements that are cast here."""


def _reshape(call: ir.Call, value: Array) -> Array:
    shape: list[int] = [int(d) for d in call.ty.shape]
    return value.reshape(shape)


def _permute_dims(call: ir.Call, value: Array) -> Array:
    axes = call.attrs.axes
    return np.transpose(value, None if axes is None else [int(a) for a in axes])


def _take(call: ir.Call, value: Array, indices: Array) -> Array | None:
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    rows = value.size if axis is None else value.shape[axis]
    # TVM's modes differ for other indices.
    inside = not indices.size or (indices.min() >= 0 and indices.max() < rows)
    return np.take(value, indices.astype("int64"), axis) if inside else None


def _gather_elements(call: ir.Call, value: Array, indices: Array) -> Array:
    return np.take_along_axis(value, indices.astype("int64"), int(call.attrs.axis))


def _broadcast_to(call: ir.Call, value: Array) -> Array:
    return np.broadcast_to(value, [int(d) for d in call.ty.shape])


def _concat(call: ir.Call, *values: Array) -> Array:
    return np.concatenate(values, 0 if call.attrs.axis is None else int(call.attrs.axis))


def _astype(call: ir.Call, value: Array) -> Array | None:
    if value.size > MOST_CAST:
        return None  # a weight stays as small as it is
    # C++ and NumPy may differ in what becomes of a float that no integer equals.
    exact = value.dtype.kind in "biu" or str(call.ty.dtype).startswith(("float", "bfloat"))
    return value if exact else None


def _elementwise(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda _, *values: function(*values)


# Functions that have one right result, in every datatype. TVM's `not_equal` differs for NaN.
_EXACT: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "negative": np.negative,
    "abs": np.abs,
    "isnan": np.isnan,
    "where": np.where,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_not": np.logical_not,
}


FOLDERS: dict[str, Callable[..., Array | None]] = {
    **{f"relax.{name}": _elementwise(function) for name, function in _EXACT.items()},
    "relax.astype": _astype,
    "relax.broadcast_to": _broadcast_to,
    "relax.concat": _concat,
    "relax.gather_elements": _gather_elements,
    "relax.take": _take,
    "relax.reshape": _reshape,
    "relax.expand_dims": _reshape,
    "relax.squeeze": _reshape,
    "relax.permute_dims": _permute_dims,
}


def fold_constants(mod: tvm.IRModule) -> tvm.IRModule:
    """Fold the operators of `FOLDERS` whose inputs are constants."""
    folded = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv, function in mod.functions.items():
        if isinstance(function, relax.Function):
            folded[gv] = _Folder(mod).visit_expr(function)
    return relax.transform.CanonicalizeBindings()(folded)


@mutator
class _Folder(PyExprMutator):  # type: ignore[misc]  # TVM has no types
    def visit_call_(self, call: ir.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = call.op.name if isinstance(call.op, ir.Op) else ""
        if name == "relax.shape_to_tensor":
            extents = self._extents(call.args[0])
            return call if extents is None else relax.const(np.array(extents, "int64"), "int64")
        fold = FOLDERS.get(name)
        if fold is None or self._extents(call) is None:
            return call
        values = [self._constant(a) for a in self._tensors(call)]
        if any(v is None for v in values):
            return call
        with np.errstate(all="ignore"):
            result = fold(call, *values)
        if result is None:
            return call
        result = result.astype(str(call.ty.dtype), copy=False)
        # Without a datatype TVM would make 32 bits of 64.
        return relax.const(np.ascontiguousarray(result).reshape(result.shape), result.dtype)

    def _tensors(self, call: ir.Call) -> list[relax.Expr]:
        """The operands. The target of a reshape is not a tensor, and the result's type already has it."""
        found: list[relax.Expr] = []
        for arg in call.args:
            bound = self._bound(arg)
            found += bound.fields if isinstance(bound, relax.Tuple) else [arg]
        return [a for a in found if not isinstance(a.ty, relax.ShapeType)]

    def _extents(self, expr: relax.Expr) -> list[int] | None:
        """The shape of a tensor, or the value of a shape, if it is known."""
        values = expr.ty.values if isinstance(expr.ty, relax.ShapeType) else getattr(expr.ty, "shape", None)
        if values is None or not all(isinstance(d, tirx.IntImm) for d in values):
            return None
        return [int(d) for d in values]

    def _bound(self, expr: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(expr) if isinstance(expr, ir.Var) else expr

    def _constant(self, expr: relax.Expr) -> Array | None:
        bound = self._bound(expr)
        return bound.value.numpy() if isinstance(bound, ir.GenericConst) else None
