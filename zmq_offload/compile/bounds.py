"""Keep indices inside the tensors that they point into.

TVM compiles gathers and scatters without bounds checks. The inputs of a subgraph come from the network, and an index
out of range would read what is not the sender's, or take the worker down. Such an index is clamped to the nearest that
exists (ONNX leaves what happens undefined).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import ir, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator


def clamp_indices(mod: tvm.IRModule) -> tvm.IRModule:
    """The module with the indices clamped of all gathers and scatters by indices that are computed."""
    guarded = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gv, function in mod.functions.items():
        if isinstance(function, relax.Function):
            guarded[gv] = _Clamper(mod).visit_expr(function)
    return guarded


@mutator
class _Clamper(PyExprMutator):  # type: ignore[misc]  # TVM has no types
    def visit_call_(self, call: ir.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = call.op.name if isinstance(call.op, ir.Op) else None
        if name not in INDEXED or isinstance(call.args[1], ir.GenericConst):
            return call
        data, indices, *updates = call.args
        if name == "relax.take":
            axis = None if call.attrs.axis is None else int(call.attrs.axis)
            mode = "clip" if str(call.attrs.mode) == "fast" else str(call.attrs.mode)
            return relax.op.take(data, indices, axis, mode)
        limits = INDEXED[name](call.attrs, [*data.ty.shape], [*indices.ty.shape])
        if not all(isinstance(d, tirx.IntImm) for d in limits):
            return call  # a symbolic extent: no constant to clamp to
        dtype = str(indices.ty.dtype)
        last = np.array([int(d) - 1 for d in limits], dtype)
        # scatter_elements counts negative indices from the end itself; for the others the importer has done it.
        first = -last - 1 if name == "relax.scatter_elements" else np.zeros_like(last)
        emit = self.builder_.emit
        inside = emit(relax.op.maximum(indices, relax.const(first, dtype)))
        inside = emit(relax.op.minimum(inside, relax.const(last, dtype)))
        return relax.Call(call.op, [data, inside, *updates], call.attrs, call.ty_args)


def _along_axis(attrs: Any, data: Sequence[Any], _indices: Sequence[Any]) -> Sequence[Any]:
    return [data[int(attrs.axis)]]


def _gathered(attrs: Any, data: Sequence[Any], indices: Sequence[Any]) -> Sequence[Any]:
    first = int(attrs.batch_dims)
    return data[first : first + int(indices[-1])]


def _scattered(_attrs: Any, data: Sequence[Any], indices: Sequence[Any]) -> Sequence[Any]:
    return data[: int(indices[-1])]


# Operator -> the extents that its indices point into: one, or one for each coordinate.
INDEXED = {
    "relax.take": _along_axis,
    "relax.gather_elements": _along_axis,
    "relax.scatter_elements": _along_axis,
    "relax.gather_nd": _gathered,
    "relax.scatter_nd": _scattered,
}
