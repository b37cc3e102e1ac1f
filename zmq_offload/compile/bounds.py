"""Keep indices inside the tensors that they point into.

TVM compiles gathers, scatters and RoiAlign without bounds checks. The inputs of a subgraph come from the network, and
an index out of range would read other data in memory, or crash the worker. Such an index is clamped to the nearest
valid one (ONNX leaves the result undefined).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import tvm
from tvm import ir, relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

Extents: TypeAlias = Sequence[ir.Expr]


def clamp_indices(mod: tvm.IRModule) -> tvm.IRModule:
    """Clamp the indices of gathers and scatters that are computed at run time, and the boxes of RoiAlign."""
    clamper = _Clamper(mod)
    for gv, function in mod.functions.items():
        if isinstance(function, relax.Function):
            clamper.builder_.update_func(gv, clamper.visit_expr(function))
    guarded = clamper.builder_.get()
    return guarded if mod.attrs is None else guarded.with_attrs(mod.attrs)


@mutator
class _Clamper(PyExprMutator):  # type: ignore[misc]  # TVM has no types
    def visit_call_(self, call: ir.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = call.op.name if isinstance(call.op, ir.Op) else None
        if name in BOXES:
            return self._boxes(call)
        if name not in INDEXED or isinstance(call.args[1], ir.GenericConst):
            return call
        data, indices, *updates = call.args
        if name == "relax.take":
            axis = None if call.attrs.axis is None else int(call.attrs.axis)
            mode = "clip" if str(call.attrs.mode) == "fast" else str(call.attrs.mode)
            return relax.op.take(data, indices, axis, mode)
        limits = INDEXED[name](call.attrs, [*data.ty.shape], [*indices.ty.shape])
        dtype = str(indices.ty.dtype)
        last = self._constant([d - 1 for d in limits], dtype)
        first = relax.const(np.zeros(len(limits), dtype), dtype)
        emit = self.builder_.emit
        if name == "relax.scatter_elements":
            # This operator counts negative indices from the end itself. For the others the importer converts them.
            first = self._constant([-d for d in limits], dtype)
        inside = emit(relax.op.minimum(emit(relax.op.maximum(indices, first)), last))
        return relax.Call(call.op, [data, inside, *updates], call.attrs, call.ty_args)

    def _boxes(self, call: ir.Call) -> relax.Expr:
        """Clamp boxes to existing images and to a finite size: RoiAlign's loop is as long as a box is large.

        A box is (image, x1, y1, x2, y2). It does not change if it is within `FAR` times the image's extents.
        """
        data, boxes = call.args
        dtype = str(boxes.ty.dtype)
        layout, shape = str(call.attrs.layout), [*data.ty.shape]
        count, height, width = (shape[layout.index(axis)] for axis in "NHW")
        scale = tirx.const(float(call.attrs.spatial_scale), "float32")
        far = [tirx.Cast("float32", extent) * float(FAR) / scale for extent in (width, height)] * 2
        last = self._constant([tirx.Cast("float32", count - 1), *far], dtype)
        first = self._constant([tirx.const(0.0, "float32"), *(-limit for limit in far)], dtype)
        emit = self.builder_.emit
        # Comparisons with NaN are false, so that NaN becomes `last`.
        above = emit(relax.op.where(emit(relax.op.greater_equal(boxes, first)), boxes, first))
        inside = emit(relax.op.where(emit(relax.op.less_equal(boxes, last)), above, last))
        result = relax.Call(call.op, [data, inside], call.attrs, call.ty_args)
        return self._without_empty(result, inside) if call.op.name == "relax.vision.roi_align" else result

    def _without_empty(self, result: ir.Call, boxes: relax.Expr) -> relax.Expr:
        """Return 0 for boxes without an extent, as ONNX Runtime does. TVM leaves an empty sum uninitialized."""
        dtype, emit, op = str(boxes.ty.dtype), self.builder_.emit, relax.op
        if not result.attrs.aligned or int(result.attrs.sample_ratio) > 0:
            return result  # every box has a sample
        near, far = (emit(op.strided_slice(boxes, [1], [a], [a + 2])) for a in (1, 3))
        # Extents within the rounding error count as 0.
        rounding = emit(op.multiply(emit(op.add(emit(op.abs(near)), emit(op.abs(far)))), relax.const(1e-6, dtype)))
        least = emit(op.add(rounding, relax.const(1e-30, dtype)))
        extent = emit(op.min(emit(op.subtract(emit(op.subtract(far, near)), least)), 1))
        there = emit(op.reshape(emit(op.greater(extent, relax.const(0, dtype))), (-1, 1, 1, 1)))
        return op.where(there, emit(result), relax.const(0, str(result.args[0].ty.dtype)))

    def _constant(self, values: Sequence[ir.Expr | float], dtype: str) -> relax.Expr:
        """A one-dimensional tensor of numbers, which may depend on symbolic extents."""
        values = [tirx.Cast(dtype, v) for v in values]
        simple = [tvm.sym.Analyzer().simplify(v) for v in values]
        if all(isinstance(v, tirx.IntImm | tirx.FloatImm) for v in simple):
            return relax.const(np.array([v.value for v in simple], dtype), dtype)

        def limits(*numbers: ir.Expr) -> te.Tensor:
            def at(i: tirx.Var) -> ir.Expr:
                value = numbers[-1]
                for place, number in enumerate(numbers[:-1]):
                    value = tirx.Select(tirx.EQ(i, tirx.const(place, str(i.ty.dtype))), number, value)
                return value

            return te.compute((len(numbers),), at, name="limits")

        return self.builder_.emit_te(limits, *simple, primfunc_name_hint="limits")


BOXES = ("relax.vision.roi_align", "relax.vision.roi_pool")

FAR = 4
"""The maximum distance of a box of RoiAlign from the image, in multiples of the image's extent."""


def _along_axis(attrs: tvm.Object, data: Extents, _indices: Extents) -> Extents:
    return [data[int(attrs.axis)]]


def _gathered(attrs: tvm.Object, data: Extents, indices: Extents) -> Extents:
    first = int(attrs.batch_dims)
    return data[first : first + int(indices[-1])]


def _scattered(_attrs: tvm.Object, data: Extents, indices: Extents) -> Extents:
    return data[: int(indices[-1])]


# For each operator the extents that its indices point into: one, or one for each coordinate.
INDEXED = {
    "relax.take": _along_axis,
    "relax.gather_elements": _along_axis,
    "relax.scatter_elements": _along_axis,
    "relax.gather_nd": _gathered,
    "relax.scatter_nd": _scattered,
}
