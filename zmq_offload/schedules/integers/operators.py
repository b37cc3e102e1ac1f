"""Tensor expressions of integer products: 8-bit activations and weights, int32 sums. See `operators`."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr

from zmq_offload.schedules.integers.dot_product import DotProduct
from zmq_offload.schedules.operators import Conv, extents, padded, pixel, place, shaped
from zmq_offload.schedules.stages import KERNEL


def _product(a: Expr, b: Expr) -> Expr:
    return tirx.Mul(tirx.Cast("int32", a), tirx.Cast("int32", b))


def dense(x: te.Tensor, weight: te.Tensor, columns: int, dot: DotProduct) -> te.Tensor:
    """x (..., k) times a matrix from `dot_product.pack`."""
    lanes, group = int(weight.shape[2]), dot.group
    k = te.reduce_axis((0, x.shape[-1]), "k")

    def element(*at: Expr) -> Expr:
        left, column = (*at[:-1], k), at[-1]
        chunk, lane = tirx.floordiv(column, lanes), tirx.floormod(column, lanes)
        right = weight[chunk, tirx.floordiv(k, group), lane, tirx.floormod(k, group)]
        return te.sum(_product(x[left], right), axis=[k])

    return te.compute(
        (*x.shape[:-1], columns), element, name="integer_dense", attrs={KERNEL: "integer_dense", "columns": columns}
    )


def joined(conv: Conv) -> bool:
    """Whether columns and channels of a window are one axis: neighbors in memory, and in groups of weights."""
    return conv.groups == 1 and conv.dilation[1] == 1


def conv2d(x: te.Tensor, weight: te.Tensor, conv: Conv, dot: DotProduct) -> te.Tensor:
    """A dense or grouped convolution with weights from `dot_product.pack`.

    The packed rows are (kh), of kw * c values, if `joined`; else (kh, kw), of c values.
    """
    source = padded(x, conv)
    n, height, width, channels = extents(x, conv)
    oh, ow = conv.out_size(height, width)
    kh, kw = conv.kernel
    depth = tirx.floordiv(channels, conv.groups)
    lanes, group = int(weight.shape[2]), dot.group
    per_group = conv.out_channels // conv.groups
    chunks = -(-per_group // lanes)
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
    rc = te.reduce_axis((0, depth), "rc")
    (sh, sw), (dh, dw) = conv.strides, conv.dilation

    def element(b: Expr, *position: Expr) -> Expr:
        y, z, o = place(position, conv)
        part, inside = tirx.floordiv(o, per_group), tirx.floormod(o, per_group)
        data = pixel(source, conv, b, y * sh + ry * dh, z * sw + rx * dw, part * depth + rc)
        at, row, length = (rx * depth + rc, ry, kw * depth) if joined(conv) else (rc, ry * kw + rx, depth)
        step = row * tirx.floordiv(length + group - 1, group) + tirx.floordiv(at, group)
        chunk, lane = part * chunks + tirx.floordiv(inside, lanes), tirx.floormod(inside, lanes)
        return te.sum(_product(data, weight[chunk, step, lane, tirx.floormod(at, group)]), axis=[ry, rx, rc])

    return te.compute(
        shaped(x, conv, n, oh, ow, conv.out_channels),
        element,
        name="integer_conv2d",
        attrs={KERNEL: "integer_conv2d", **conv.attributes()},
    )


def depthwise(x: te.Tensor, weight: te.Tensor, conv: Conv, dot: DotProduct) -> te.Tensor:
    """A convolution with one filter for each channel; weights from `integer_layout.depthwise`. It reads phase 0."""
    source = padded(x, conv)
    n, height, width, channels = extents(x, conv)
    oh, ow = conv.out_size(height, width)
    kh, kw = conv.kernel
    steps = dot.steps(Phases.of(conv, dot).depth)
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
    (sh, sw), (dh, dw) = conv.strides, conv.dilation

    def element(b: Expr, *position: Expr) -> Expr:
        y, z, c = place(position, conv)
        data = pixel(source, conv, b, y * sh + ry * dh, z * sw + rx * dw, c)
        at = weight[0, rx * steps + tirx.floordiv(ry, dot.group), c, tirx.floormod(ry, dot.group)]
        return te.sum(_product(data, at), axis=[ry, rx])

    return te.compute(
        shaped(x, conv, n, oh, ow, channels),
        element,
        name="integer_depthwise",
        attrs={KERNEL: "integer_depthwise", **conv.attributes()},
    )


@dataclass(frozen=True)
class Phases:
    """How many neighboring rows of results use the same groups of input rows, of which there are `depth`.

    A group takes four rows of the input (or two). A kernel of three rows leaves one unused: the next row of results
    uses the same four, with its weights one place further. So weights are stored once for each row.
    """

    count: int
    depth: int

    @staticmethod
    def of(conv: Conv, dot: DotProduct) -> Phases:
        """Return the phases of a depthwise convolution."""
        kernel, stride = conv.kernel[0], conv.strides[0]
        spare = dot.steps(kernel) * dot.group - kernel
        count = 1 + spare // stride if conv.dilation[0] == 1 else 1
        return Phases(count, (count - 1) * stride + kernel)
