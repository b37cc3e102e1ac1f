"""Padding and rounding of pooling and convolution windows, as ONNX defines them. TVM has other rules."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import numpy as np
from tvm import relax, te, tirx

from zmq_offload.byoc.extents import Extent, expression
from zmq_offload.compile.operators.node import Node, by_tvm, dtype_of, refuse, static_shape
from zmq_offload.compile.operators.shaping import padded
from zmq_offload.compile.operators.tvm_importer import Builder, Expr

POOLS = ("AveragePool", "MaxPool", "LpPool")


def pool(bb: Builder, node: Node) -> Expr:
    """Write out `auto_pad` and `ceil_mode` of a pool as padding."""
    attributes = node.attributes
    kernel = attributes.integers("kernel_shape") or []
    spatial = len(kernel)
    reach = reach_of(node, kernel)
    strides = attributes.integers("strides") or [1] * spatial
    shape = static_shape(node.inputs[0])
    extents = shape[2:] if shape is not None else None
    pads = write_out(node, reach, strides, _image(node))
    if pads is not None:
        return _padded_pool(bb, node, *pads)
    windows: list[int] = []
    if attributes.flag("ceil_mode"):
        around = attributes.integers("pads") or [0] * 2 * spatial
        if extents is None:
            # TVM also counts a window that begins in the padding at the end. ONNX does not.
            if any(s + p > r for s, p, r in zip(strides, around[spatial:], reach, strict=True)):
                refuse(node, "ceil_mode", 1, "with symbolic dimensions use ceil_mode=0")
        else:
            longer = list(around)
            for axis, (extent, stride, size) in enumerate(zip(extents, strides, reach, strict=True)):
                whole = extent + around[axis] + around[axis + spatial]
                count = math.ceil((whole - size) / stride) + 1
                windows.append(count - 1 if (count - 1) * stride >= extent + around[axis] else count)
                longer[axis + spatial] += max(0, (windows[-1] - 1) * stride + size - whole)
            # Elements after the padding are never counted. More padding stands in for them only where padding is not
            # counted either.
            if node.operator == "LpPool" or not attributes.flag("count_include_pad"):
                attributes["pads"], attributes["ceil_mode"] = longer, 0
    if node.operator == "MaxPool" and node.outputs > 1:
        return _largest_with_places(bb, node, kernel, strides, windows)
    result = bb.normalize(by_tvm(bb, node))
    found = static_shape(result)
    extra = [a for a, n in enumerate(windows, 2) if found is not None and found[a] > n]
    if extra:
        result = relax.op.strided_slice(result, extra, [0] * len(extra), [windows[a - 2] for a in extra])
    return result


def _padded_pool(bb: Builder, node: Node, before: dict[int, Extent], after: dict[int, Extent]) -> Expr:
    """A pool whose padding depends on symbolic extents: the image is padded first."""
    x = node.inputs[0]
    kind = dtype_of(x)
    if node.operator == "MaxPool":
        if node.outputs > 1:
            refuse(node, "auto_pad", "SAME", "for places with symbolic dimensions use pads")
        fill = float("-inf") if kind.startswith("float") else int(np.iinfo(kind).min)
        node.inputs[0] = padded(bb, node, before, after, fill)
        return by_tvm(bb, node)
    counted = node.operator == "LpPool" or node.attributes.flag("count_include_pad")
    node.inputs[0] = padded(bb, node, before, after, 0)
    result = bb.normalize(by_tvm(bb, node))
    if counted:
        return result
    # The mean of the image's own elements: the mean of all over the share of its own.
    node.inputs[0] = bb.normalize(relax.op.ones_like(x))
    node.inputs[0] = padded(bb, node, before, after, 0)
    return relax.op.divide(result, bb.normalize(by_tvm(bb, node)))


def _largest_with_places(
    bb: Builder, node: Node, kernel: Sequence[int], strides: Sequence[int], windows: Sequence[int]
) -> Expr:
    """The largest element of each window, and where it is in the flattened tensor. TVM's pool has no places."""
    x, attributes, spatial = node.inputs[0], node.attributes, len(kernel)
    pads = attributes.integers("pads") or [0] * 2 * spatial
    dilations = attributes.integers("dilations") or [1] * spatial
    columns_first = attributes.flag("storage_order")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]

    def first(a: Expr, b: Expr) -> tuple[Expr, Expr]:
        # Places outside the image are -1: an element is before them, also one of -inf.
        keep = tirx.Or(a[1] > b[1], tirx.And(tirx.EQ(a[1], b[1]), a[0] >= 0))
        return tirx.Select(keep, a[0], b[0]), tirx.Select(keep, a[1], b[1])

    def nothing(place: str, value: str) -> tuple[Expr, Expr]:
        return tirx.const(-1, place), _least(value)

    largest = te.comm_reducer(first, nothing, name="largest")

    def compute(data: te.Tensor) -> Expr:
        extents = list(data.shape[2:])
        counts = list(windows) or [
            (extents[d] + pads[d] + pads[d + spatial] - reach[d]) // strides[d] + 1 for d in range(spatial)
        ]
        taps = [te.reduce_axis((0, size), name=f"k{d}") for d, size in enumerate(kernel)]

        def element(n: Expr, c: Expr, *at: Expr) -> Expr:
            source = [at[d] * strides[d] + taps[d].var * dilations[d] - pads[d] for d in range(spatial)]
            inside = tirx.all(*(tirx.all(i >= 0, i < extent) for i, extent in zip(source, extents, strict=True)))
            place = tirx.const(0, "int64")
            for d in reversed(range(spatial)) if columns_first else range(spatial):
                place = place * extents[d] + source[d]
            image = (n * data.shape[1] + c).astype("int64")
            place = place + image * functools.reduce(operator.mul, extents)
            pixel = (n, c, *source)
            value = tirx.if_then_else(inside, data[pixel], _least(data.dtype))
            return largest((tirx.if_then_else(inside, place, -1), value), axis=taps)

        return te.compute((*data.shape[:2], *counts), element, name="largest")

    found = bb.emit_te(compute, x, primfunc_name_hint="pool_with_places")
    return relax.Tuple([bb.emit(relax.TupleGetItem(found, i)) for i in (1, 0)])


def _least(kind: object) -> Expr:
    """What no element is smaller than. TVM's `min_value` is finite."""
    return tirx.FloatImm(str(kind), -math.inf) if str(kind).startswith("float") else te.min_value(kind)


def convolution(bb: Builder, node: Node) -> Expr:
    """Write out `auto_pad` of a convolution as padding."""
    attributes, weight, extents = node.attributes, static_shape(node.inputs[1]), _image(node)
    if weight is not None:
        given = attributes.integers("kernel_shape")
        if given is not None and given != weight[2:]:
            refuse(node, "kernel_shape", given, f"its weights have {weight[2:]}")
        if extents is not None:
            strides = attributes.integers("strides") or [1] * len(weight[2:])
            pads = write_out(node, reach_of(node, weight[2:]), strides, extents)
            if pads is not None:
                node.inputs[0] = padded(bb, node, *pads, 0)
    return _in_float32(bb, node)


def transposed_convolution(bb: Builder, node: Node) -> Expr:
    """Write out `output_shape` of a transposed convolution as padding."""
    attributes = node.attributes
    wanted = attributes.integers("output_shape")
    if wanted is not None:
        shape, weight = static_shape(node.inputs[0]), static_shape(node.inputs[1])
        if shape is None or weight is None:
            refuse(node, "output_shape", wanted, "with symbolic dimensions use pads")
        spatial = len(shape) - 2
        strides = attributes.integers("strides") or [1] * spatial
        extra = attributes.integers("output_padding") or [0] * spatial
        upper = attributes.text("auto_pad", "NOTSET") == "SAME_UPPER"
        begin, end = [], []
        for axis, reach in enumerate(reach_of(node, weight[2:])):
            total = strides[axis] * (shape[2 + axis] - 1) + extra[axis] + reach - wanted[-spatial:][axis]
            extra[axis] += max(-total, 0)
            if extra[axis] >= max(strides[axis], 2):
                refuse(node, "output_shape", wanted, "it is larger than the strides can fill")
            total = max(total, 0)
            begin.append(total // 2 if upper else total - total // 2)
            end.append(total - begin[-1])
        attributes.update(pads=begin + end, output_padding=extra, auto_pad=b"NOTSET")
    return _in_float32(bb, node)


def _in_float32(bb: Builder, node: Node) -> Expr:
    """Convert as TVM does, but sum 16-bit products in float32, as ONNX Runtime does.

    PyTorch's exporter writes float32 weights for data of bfloat16 where it folds a batch normalization into them.
    """
    kind = dtype_of(node.inputs[0])
    half = kind in ("float16", "bfloat16")
    if half:
        node.inputs[:] = [v if v is None else bb.normalize(relax.op.astype(v, "float32")) for v in node.inputs]
    result = by_tvm(bb, node)
    return relax.op.astype(result, kind) if half else result


def reach_of(node: Node, kernel: Sequence[int]) -> list[int]:
    """The extents of a window, dilation included."""
    dilations = node.attributes.integers("dilations") or [1] * len(kernel)
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]


def write_out(
    node: Node, reach: Sequence[int], strides: Sequence[int], extents: Sequence[Extent] | None
) -> tuple[dict[int, Extent], dict[int, Extent]] | None:
    """Write `auto_pad` as `pads`; return the pads before and after each axis if they depend on symbolic extents."""
    mode = node.attributes.text("auto_pad", "NOTSET")
    if mode == "VALID":
        node.attributes["pads"] = [0] * 2 * len(reach)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    if extents is None:
        refuse(node, "auto_pad", mode, "with an image of unknown shape use pads")
    begin: list[Extent] = []
    end: list[Extent] = []
    known = node.extents
    for extent, stride, size in zip(extents, strides, reach, strict=True):
        count = known.floor_div(known.normal(extent + (stride - 1)), stride)
        total = known.normal(known.product([count - 1, stride]) + size - extent)
        if not known.at_least(total, 0):
            total = 0 if known.at_least(0, total) else tirx.Max(expression(total), tirx.IntImm("int64", 0))
        less = known.floor_div(total, 2)
        more = known.normal(total - less)
        begin.append(less if mode == "SAME_UPPER" else more)
        end.append(more if mode == "SAME_UPPER" else less)
    if "ceil_mode" in node.attributes:
        node.attributes["ceil_mode"] = 0
    numbers = [n for n in (*begin, *end) if isinstance(n, int)]
    if len(numbers) == 2 * len(reach):
        node.attributes.update(pads=numbers, auto_pad=b"NOTSET")
        return None
    node.attributes.update(pads=[0] * 2 * len(reach), auto_pad=b"NOTSET")
    return dict(enumerate(begin, 2)), dict(enumerate(end, 2))


def _image(node: Node) -> list[Extent] | None:
    """The extents of the image, without batch and channels; None if they are not known."""
    ty = node.inputs[0].ty
    return node.dims(0)[2:] if isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr) else None
