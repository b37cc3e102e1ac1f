"""NonMaxSuppression, NonZero and Compress: the run tells how many rows they keep. That extent is a symbol."""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx, topi

from zmq_offload.byoc.extents import Extent, expression
from zmq_offload.compile.operators.node import Node, dtype_of
from zmq_offload.compile.operators.tvm_importer import Builder, Expr

op = relax.op


def non_max_suppression(bb: Builder, node: Node) -> Expr:
    """As TVM's operator, with ONNX's defaults and thresholds, and for scores that are not positive."""
    most, overlap, least = node.constant(2), node.constant(3), node.constant(4)
    # ONNX drops a box above the threshold, TVM at the threshold: use the next larger number.
    threshold = np.float32(0.0 if overlap is None else overlap.reshape(-1)[0])
    above = float(np.nextafter(threshold, np.float32(np.inf)))
    lowest = None if least is None else float(least.reshape(-1)[0])
    # The largest number means all, and TVM counts in 32 bits.
    limit = 0 if most is None else min(int(most.reshape(-1)[0]), 2**31 - 1)
    boxes, scores = node.inputs[0], node.inputs[1]
    if node.attributes.integer("center_point_box", 0):
        boxes = corners(bb, boxes)
    if lowest is None or lowest < 0:
        scores, lowest = ranks(bb, scores, lowest), 0.0

    def suppress(boxes: te.Tensor, scores: te.Tensor) -> list[te.Tensor]:
        batch, classes, there = scores.shape
        if isinstance(there, tirx.IntImm):
            # TVM clears so many rows for each class, which may be more than there are boxes.
            few = min(limit, int(there))
            number, shape = few, (batch * classes * few, 3)
        else:
            # It would estimate the rows of its table, and clears ten for each class.
            number, shape = tirx.IntImm("int32", limit), (batch * classes * tirx.max(there, 10), 3)
        return list(topi.vision.all_class_non_max_suppression(boxes, scores, number, above, lowest, "onnx", shape))

    result = bb.emit_te(suppress, boxes, scores, primfunc_name_hint="non_max_suppression")
    table, count = (bb.emit(relax.TupleGetItem(result, i)) for i in range(2))
    return leading_rows(bb, node, table, count, node.extents.product(node.dims(1)))


def non_zero(bb: Builder, node: Node) -> Expr:
    """The places of elements that are not 0, along each axis."""
    x, dims = node.inputs[0], [expression(d) for d in node.dims(0)]
    if not dims:
        raise node.refused("its input has no dimension", "export the model with a tensor of one element")
    name = str(node.proto.input[0]) if node.proto is not None else ""
    if name in node.scope.places_kept:
        return node.scope.places_kept[name]
    flat = bb.normalize(op.reshape(x, relax.ShapeExpr([expression(node.extents.product(node.dims(0)))])))
    places = places_of_kept(bb, node, flat)
    rows, step = [], places
    for axis in reversed(range(len(dims))):
        size = bb.normalize(op.shape_to_tensor(relax.ShapeExpr([dims[axis]])))
        rows.append(bb.normalize(op.floor_mod(step, size) if axis else step))
        step = bb.normalize(op.floor_divide(step, size)) if axis else step
    result = bb.emit(op.stack(rows[::-1], axis=0))
    if name:
        node.scope.places_kept[name] = result
    return result


def compress(bb: Builder, node: Node) -> Expr:
    """The slices for which a vector of conditions is true. It may be shorter than the axis."""
    x, axis = node.inputs[0], node.attributes.get("axis")
    if axis is None:
        x = bb.normalize(op.reshape(x, relax.ShapeExpr([expression(node.extents.product(node.dims(0)))])))
    return op.take(x, places_of_kept(bb, node, node.inputs[1]), axis=0 if axis is None else int(axis) % x.ty.ndim)


def places_of_kept(bb: Builder, node: Node, values: Expr) -> Expr:
    """The places of a vector's elements that are not 0, in order."""
    if dtype_of(values) != "bool":
        values = bb.normalize(op.not_equal(values, relax.const(0, dtype_of(values))))
    kept = bb.normalize(op.astype(values, "int64"))
    extent = kept.ty.shape.values[0]
    places = bb.normalize(op.arange(0, extent, 1, "int64"))
    # What is not kept is written past the end.
    past = bb.normalize(op.shape_to_tensor(relax.ShapeExpr([extent])))
    before = bb.normalize(op.subtract(op.cumsum(kept, 0), relax.const(1, "int64")))
    target = bb.normalize(op.where(op.astype(kept, "bool"), before, past))
    empty = bb.normalize(op.zeros(relax.ShapeExpr([extent + 1]), "int64"))
    table = bb.normalize(op.scatter_elements(empty, target, places, axis=0))
    count = bb.normalize(op.sum(kept, [0]))
    rows = leading_rows(bb, node, bb.normalize(op.expand_dims(table, 1)), count, node.extents.normal(extent))
    return bb.normalize(op.squeeze(rows, [1]))


def ranks(bb: Builder, scores: Expr, lowest: float | None) -> Expr:
    """Positive numbers in the order of the scores; 0 for those not above `lowest`. TVM keeps only positive scores."""
    order = bb.normalize(op.argsort(scores, axis=-1, descending=True, dtype="int32"))
    places = bb.normalize(op.astype(op.argsort(order, axis=-1, dtype="int32"), "float32"))
    one = relax.const(1, "float32")
    values = bb.normalize(op.divide(one, op.add(places, one)))
    if lowest is None:
        return values
    kept = bb.normalize(op.greater(scores, relax.const(lowest, dtype_of(scores))))
    return bb.normalize(op.where(kept, values, relax.const(0, "float32")))


def corners(bb: Builder, boxes: Expr) -> Expr:
    """Boxes of a centre and a size, as boxes of two corners."""
    x, y, width, height = (bb.normalize(op.strided_slice(boxes, [2], [i], [i + 1])) for i in range(4))
    half = relax.const(0.5, dtype_of(boxes))
    ends = [(c, bb.normalize(op.multiply(size, half))) for c, size in ((y, height), (x, width))]
    places = [bb.normalize(op.subtract(c, h)) for c, h in ends] + [bb.normalize(op.add(c, h)) for c, h in ends]
    return bb.normalize(op.concat(places, axis=2))


def leading_rows(bb: Builder, node: Node, table: Expr, count: Expr, most: Extent) -> Expr:
    """The first rows of a table of int64, as many as the run tells, at most `most`. Their number is a new symbol."""
    width = int(table.ty.shape.values[1])
    end = op.concat([op.astype(op.reshape(count, (1,)), "int64"), relax.const([width], "int64")], axis=0)
    zeros, ones = (relax.const([i, i], "int64") for i in (0, 1))
    rows = bb.normalize(op.dynamic_strided_slice(table, zeros, bb.normalize(end), ones))
    name = f"rows_of_{node.output_name(0)}"
    node.scope.at_most[name] = most
    shape = [node.extents.count(name), tirx.IntImm("int64", width)]
    return bb.match_cast(rows, relax.TensorType(relax.ShapeExpr(shape), dtype_of(table)))
