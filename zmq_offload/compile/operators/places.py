"""Operators that read elements at computed places: reversed sequences, columns to images, deformed windows, caches."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax, te, tirx

from zmq_offload.compile.operators.node import Node, by_tvm, dtype_of, static_shape
from zmq_offload.compile.operators.tvm_importer import Builder, Expr, datatype

op = relax.op


def reverse_sequence(bb: Builder, node: Node) -> Expr:
    batch, time = (node.attributes.integer(name, usual) for name, usual in (("batch_axis", 1), ("time_axis", 0)))

    def reverse(data: te.Tensor, lengths: te.Tensor) -> te.Tensor:
        def element(*at: Expr) -> Expr:
            length, place = lengths[at[batch]], at[time]
            source = tirx.if_then_else(place < length, length - 1 - place, place)
            return data[tuple(source if axis == time else i for axis, i in enumerate(at))]

        return te.compute(data.shape, element, name="reverse", tag="injective")

    lengths = bb.normalize(op.astype(node.inputs[1], "int64"))
    return bb.emit_te(reverse, node.inputs[0], lengths, primfunc_name_hint="reverse_sequence")


def cumulative_product(bb: Builder, node: Node) -> Expr:
    x, axis = node.inputs[0], node.constant(1)
    assert axis is not None
    along = int(axis.reshape(-1)[0]) % x.ty.ndim
    backward = node.attributes.flag("reverse")
    x = bb.normalize(op.flip(x, along)) if backward else x
    result = op.cumprod(x, along, dtype_of(x), node.attributes.flag("exclusive"))
    return op.flip(bb.normalize(result), along) if backward else result


def lp_normalization(bb: Builder, node: Node) -> Expr:
    """A vector of length 0 stays 0."""
    x, axis, p = node.inputs[0], node.attributes.integer("axis", -1), node.attributes.integer("p", 2)
    size = op.abs(x) if p == 1 else op.multiply(x, x)
    norm = bb.normalize(op.sum(size, axis, True))
    norm = norm if p == 1 else bb.normalize(op.sqrt(norm))
    zero, one = (relax.const(value, dtype_of(x)) for value in (0, 1))
    return op.divide(x, op.where(op.equal(norm, zero), one, norm))


def tensor_scatter(bb: Builder, node: Node) -> Expr:
    """Write new keys or values into a cache, at a place for each item of the batch."""
    cache, update, starts = node.inputs[0], node.inputs[1], node.inputs[2]
    axis = node.attributes.integer("axis", -2) % cache.ty.ndim
    circular = node.attributes.text("mode", "linear") == "circular"
    if starts is None:
        starts = op.zeros(relax.ShapeExpr([cache.ty.shape.values[0]]), "int64")
    starts = bb.normalize(op.astype(starts, "int64"))
    return scattered(bb, cache, update, starts, axis, circular)


def scattered(bb: Builder, cache: Expr, update: Expr, starts: Expr, axis: int, circular: bool = False) -> Expr:
    """A cache with new elements along an axis, from another place on for each item of the batch."""

    def scatter(old: te.Tensor, new: te.Tensor, start: te.Tensor) -> te.Tensor:
        def element(*at: Expr) -> Expr:
            place = at[axis] - start[at[0]]
            place = tirx.floormod(place, old.shape[axis]) if circular else place
            inside = tirx.all(place >= 0, place < new.shape[axis])
            source = new[tuple(place if a == axis else i for a, i in enumerate(at))]
            return tirx.if_then_else(inside, source, old[at])

        return te.compute(old.shape, element, name="scatter", tag="injective")

    return bb.emit_te(scatter, cache, update, starts, primfunc_name_hint="tensor_scatter")


def scatter_elements(bb: Builder, node: Node) -> Expr:
    """TVM's kernel writes to wrong places if the indices are fewer than the data along another axis."""
    data, indices, updates = node.inputs[0], node.inputs[1], node.inputs[2]
    rank = data.ty.ndim
    axis = node.attributes.integer("axis", 0) % rank
    reduction = node.attributes.text("reduction", "none").replace("none", "update")
    if all(
        a == axis or node.extents.equal(d, i) for a, (d, i) in enumerate(zip(node.dims(0), node.dims(1), strict=True))
    ):
        return op.scatter_elements(data, indices, updates, axis, reduction)

    def places(index: te.Tensor, extent: Expr) -> te.Tensor:
        """The whole place of each index, in a last dimension."""

        def element(*at: Expr) -> Expr:
            along = index[at[:-1]].astype("int64")
            along = tirx.Select(along < 0, along + extent, along)
            place = along
            for a in range(rank):
                if a != axis:
                    place = tirx.Select(tirx.EQ(at[-1], a), at[a].astype("int64"), place)
            return place

        return te.compute([*index.shape, rank], element, name="places", tag="injective")

    whole = bb.emit_te(places, indices, data.ty.shape.values[axis], primfunc_name_hint="places")
    return op.scatter_nd(data, whole, updates, reduction)


def unique(bb: Builder, node: Node) -> Expr:
    """Without an axis TVM gives the inverse another shape than ONNX, unless the tensor has one dimension."""
    if "axis" not in node.attributes and node.inputs[0].ty.ndim != 1:
        node.inputs[0] = bb.normalize(op.reshape(node.inputs[0], [-1]))
    return by_tvm(bb, node)


def grid_sample(bb: Builder, node: Node) -> Expr:
    """TVM divides by 0 to reflect inside an axis with one element. Two equal elements give the same samples."""
    x, attributes = node.inputs[0], node.attributes
    if attributes.text("padding_mode", "zeros") == "reflection" and attributes.flag("align_corners"):
        for axis, extent in enumerate(x.ty.shape.values[2:], 2):
            if isinstance(extent, tirx.IntImm) and int(extent) == 1:
                x = bb.normalize(op.concat([x, x], axis))
        node.inputs[0] = x
    return by_tvm(bb, node)


def column_to_image(bb: Builder, node: Node) -> Expr:
    """Each pixel is the sum of the elements of all windows that have it."""
    image, block = node.constant(1), node.constant(2)
    assert image is not None and block is not None
    rank = len(image)
    size = [int(n) for n in image]
    window = [int(n) for n in block]
    strides = node.attributes.integers("strides") or [1] * rank
    dilations = node.attributes.integers("dilations") or [1] * rank
    pads = node.attributes.integers("pads") or [0] * 2 * rank
    counts = [
        (size[d] + pads[d] + pads[d + rank] - (window[d] - 1) * dilations[d] - 1) // strides[d] + 1 for d in range(rank)
    ]
    area = math.prod(window)

    def compute(data: te.Tensor) -> te.Tensor:
        taps = [te.reduce_axis((0, extent), name=f"k{d}") for d, extent in enumerate(window)]

        def element(n: Expr, c: Expr, *at: Expr) -> Expr:
            tap, column, valid = tirx.const(0, "int64"), tirx.const(0, "int64"), []
            for d in range(rank):
                place = at[d] + pads[d] - taps[d].var * dilations[d]
                column = column * counts[d] + tirx.floordiv(place, strides[d])
                tap = tap * window[d] + taps[d].var
                valid += [place >= 0, tirx.floordiv(place, strides[d]) < counts[d]]
                valid += [tirx.floormod(place, strides[d]) == 0] if strides[d] > 1 else []
            value = data[n, c * area + tap, column]
            return te.sum(tirx.if_then_else(tirx.all(*valid), value, tirx.const(0, data.dtype)), axis=taps)

        channels = tirx.floordiv(data.shape[1], area)
        return te.compute((data.shape[0], channels, *size), element, name="image")

    return bb.emit_te(compute, node.inputs[0], primfunc_name_hint="col2im")


def deformed_convolution(bb: Builder, node: Node) -> Expr:
    """Windows whose elements are read at shifted places, between the pixels, and a product with the weights."""
    x, weight, offset, bias, mask = node.inputs[0], node.inputs[1], node.inputs[2], node.inputs[3], node.inputs[4]
    shape = static_shape(weight)
    if shape is None or len(shape) != 4:
        raise node.refused("its weights are not of a fixed shape with two spatial axes", "use Conv")
    outputs, each, *window = shape
    given = node.attributes.integers("kernel_shape")
    if given is not None and given != window:
        raise node.refused(f"with kernel_shape={given}", f"its weights have {window}")
    group = node.attributes.integer("group", 1)
    shares = node.attributes.integer("offset_group", 1)
    strides = node.attributes.integers("strides") or [1, 1]
    dilations = node.attributes.integers("dilations") or [1, 1]
    pads = node.attributes.integers("pads") or [0, 0, 0, 0]
    batch = x.ty.shape.values[0]
    rows, columns = offset.ty.shape.values[2:]
    channels, area = each * group, math.prod(window)

    def sample(data: te.Tensor, shift: te.Tensor, *scale: te.Tensor) -> te.Tensor:
        height, width = data.shape[2:]

        def element(n: Expr, c: Expr, k: Expr, i: Expr, j: Expr) -> Expr:
            share = tirx.floordiv(c, channels // shares)
            first = (share * area + k) * 2
            steps = (tirx.floordiv(k, window[1]), tirx.floormod(k, window[1]))
            y, z = (
                shift[n, first + d, i, j] + (at * strides[d] - pads[d] + steps[d] * dilations[d]).astype(data.dtype)
                for d, at in enumerate((i, j))
            )
            top, left = tirx.floor(y), tirx.floor(z)
            total = tirx.const(0, data.dtype)
            for down in (0, 1):
                for right in (0, 1):
                    row, column = (top + down).astype("int64"), (left + right).astype("int64")
                    inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
                    part = (y - top if down else 1 - (y - top)) * (z - left if right else 1 - (z - left))
                    pixel = data[n, c, row, column]
                    total = total + tirx.if_then_else(inside, pixel, tirx.const(0, data.dtype)) * part
            return total * scale[0][n, share * area + k, i, j] if scale else total

        return te.compute((batch, channels, area, rows, columns), element, name="sample", tag="injective")

    taken = bb.emit_te(sample, x, offset, *([] if mask is None else [mask]), primfunc_name_hint="deformed")
    taken = bb.normalize(op.reshape(taken, relax.ShapeExpr([batch, group, each * area, rows * columns])))
    matrix = bb.normalize(op.reshape(weight, relax.ShapeExpr([1, group, outputs // group, each * area])))
    result = bb.normalize(op.matmul(matrix, taken))
    result = bb.normalize(op.reshape(result, relax.ShapeExpr([batch, outputs, rows, columns])))
    return result if bias is None else op.add(result, op.reshape(bias, relax.ShapeExpr([1, outputs, 1, 1])))


def bit_cast(bb: Builder, node: Node) -> Expr:
    """The same bits as another datatype of the same width."""
    x, kind = node.inputs[0], datatype(node.attributes.integer("to", 1))
    if kind == dtype_of(x):
        return x
    if dtype_of(x) == "bool" and kind in ("int8", "uint8"):
        return op.astype(x, kind)
    if "bool" in (kind, dtype_of(x)) or np.dtype(kind).itemsize != np.dtype(dtype_of(x)).itemsize:
        raise node.refused(f"it casts {dtype_of(x)} to {kind}", "use a datatype of the same width")

    def cast(data: te.Tensor) -> te.Tensor:
        return te.compute(data.shape, lambda *at: tirx.reinterpret(kind, data[at]), name="bits", tag="injective")

    return bb.emit_te(cast, x, primfunc_name_hint="bit_cast")


def space_to_depth(bb: Builder, node: Node) -> Expr:
    """Blocks of pixels become channels: the places in a block first (DCR), or the channels first (CRD)."""
    x, size = node.inputs[0], int(node.attributes["blocksize"])
    n, c, h, w = x.ty.shape.values
    order = [0, 1, 3, 5, 2, 4] if node.attributes.text("mode", "DCR") == "CRD" else [0, 3, 5, 1, 2, 4]
    split = bb.normalize(op.reshape(x, relax.ShapeExpr([n, c, h // size, size, w // size, size])))
    moved = bb.normalize(op.permute_dims(split, order))
    return op.reshape(moved, relax.ShapeExpr([n, c * size * size, h // size, w // size]))
