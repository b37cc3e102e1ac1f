"""Tensor expressions of the operators that have a kernel, in the layouts of the kernels.

They define the result, so that TVM's default schedule is correct where no rule takes a function. The annotation
`stages.KERNEL` of their block names the rule that schedules them.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import tvm
from tvm import te, tirx
from tvm.ir import Expr

from zmq_offload.schedules.emit import index
from zmq_offload.schedules.stages import KERNEL
from zmq_offload.schedules.weights import widened

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Depth:
    """Geometry along the depth, the third axis of a volume (n, d, h, w, c)."""

    kernel: int
    stride: int
    front: int  # padding
    back: int
    dilation: int

    def out_size(self, planes: Expr) -> Expr:
        """Return the depth of the result."""
        reach = (self.kernel - 1) * self.dilation + 1
        return tirx.floordiv(planes + (self.front + self.back - reach), self.stride) + 1


@dataclass(frozen=True)
class Conv:
    """Geometry of a convolution over (n, h, w, c), or (n, d, h, w, c) if it has a depth; h = 1 if one-dimensional.

    An `upright` image has one column, (n, h, 1, c). Its geometry is that of one row: (1, k) for a kernel of k rows.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, left, bottom, right
    dilation: tuple[int, int]
    groups: int
    out_channels: int
    channels_first: bool = False  # the input is (n, c, h, w); the result is (n, h, w, c)
    fill: int = 0  # the value around the input
    depth: Depth | None = None
    upright: bool = False

    def out_size(self, height: Expr, width: Expr) -> tuple[Expr, Expr]:
        """Return height and width of the result."""
        top, left, bottom, right = self.padding
        sizes = []
        for size, pad, kernel, stride, dilation in zip(
            (height, width), (top + bottom, left + right), self.kernel, self.strides, self.dilation, strict=True
        ):
            # Simplified, as Relax does: TVM's FuseTIR compares symbolic extents by their form.
            result = tirx.floordiv(size + (pad - (kernel - 1) * dilation - 1), stride) + 1
            sizes.append(tvm.sym.Analyzer().simplify(result))
        return sizes[0], sizes[1]

    def out_width(self, width: int) -> int:
        """Return the width of the result for an input of `width` columns."""
        (_, left, _, right), reach = self.padding, (self.kernel[1] - 1) * self.dilation[1] + 1
        return (width + left + right - reach) // self.strides[1] + 1

    def attributes(self) -> dict[str, int | list[int]]:
        """Return the geometry as annotations of a block."""
        return {
            "kernel": list(self.kernel),
            "strides": list(self.strides),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
            "out_channels": self.out_channels,
            "channels_first": int(self.channels_first),
            "fill": self.fill,
            "depth": [] if self.depth is None else list(astuple(self.depth)),
            "upright": int(self.upright),
        }

    @staticmethod
    def of(annotations: dict[str, Any]) -> Conv:
        """Return the geometry that `attributes` wrote."""
        numbers = {k: tuple(int(i) for i in annotations[k]) for k in ("kernel", "strides", "padding", "dilation")}
        return Conv(
            **numbers,  # type: ignore[arg-type]
            groups=int(annotations["groups"]),
            out_channels=int(annotations["out_channels"]),
            channels_first=bool(int(annotations["channels_first"])),
            fill=int(annotations["fill"]),
            depth=Depth(*(int(i) for i in annotations["depth"])) if annotations["depth"] else None,
            upright=bool(int(annotations["upright"])),
        )


def padded(x: te.Tensor, conv: Conv) -> te.Tensor:
    """Return the input as (n, h, w, c) with `conv.fill` around; the input itself if nothing changes."""
    n, h, w, c = extents(x, conv)
    top, left, bottom, right = conv.padding
    if not any(conv.padding) and not conv.channels_first:
        return x

    def element(b: Expr, *at: Expr) -> Expr:
        y, z, i = place(at, conv)
        y, z = y - top, z - left
        value = x[b, i, y, z] if conv.channels_first else pixel(x, conv, b, y, z, i)
        if not any(conv.padding):
            return value
        return tirx.if_then_else(tirx.all(y >= 0, y < h, z >= 0, z < w), value, tirx.const(conv.fill, x.dtype))

    shape = shaped(x, conv, n, h + top + bottom, w + left + right, c)
    return te.compute(shape, element, name="pad", attrs={KERNEL: "pad"})


def extents(x: te.Tensor, conv: Conv) -> tuple[Expr, Expr, Expr, Expr]:
    """Return n, h, w, c of the input."""
    if conv.channels_first:
        n, c, h, w = x.shape
        return n, h, w, c
    if len(x.shape) == 3:
        n, w, c = x.shape
        return n, index(1), w, c
    n, h, w, c = x.shape
    return (n, w, h, c) if conv.upright else (n, h, w, c)


def shaped(x: te.Tensor, conv: Conv, n: Expr, h: Expr, w: Expr, c: Expr | int) -> tuple[Expr | int, ...]:
    """Return the indices of an element, or a shape, of rank and orientation of `x`."""
    if len(x.shape) == 3:
        return n, w, c
    return (n, w, h, c) if conv.upright else (n, h, w, c)


def place(at: tuple[Expr, ...], conv: Conv) -> tuple[Expr, Expr, Expr]:
    """Return row, column and channel of indices after the batch."""
    if len(at) == 2:
        return index(0), at[0], at[1]
    return (at[1], at[0], at[2]) if conv.upright else (at[0], at[1], at[2])


def pixel(x: te.Tensor, conv: Conv, b: Expr, y: Expr, z: Expr, c: Expr) -> Expr:
    """Return an element of an image with channels last."""
    return x[shaped(x, conv, b, y, z, c)]


def conv2d(x: te.Tensor, weight: te.Tensor, conv: Conv) -> te.Tensor:
    """A dense or grouped convolution with weights from `pack_conv`."""
    source = padded(x, conv)
    n, height, width, _ = extents(x, conv)
    oh, ow = conv.out_size(height, width)
    _, kh, kw, ic, lanes = weight.shape
    per_group = conv.out_channels // conv.groups
    chunks = -(-per_group // int(lanes))
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
    rc = te.reduce_axis((0, ic), "rc")
    sh, sw = conv.strides
    dh, dw = conv.dilation

    def element(b: Expr, *position: Expr) -> Expr:
        y, z, o = place(position, conv)
        group = tirx.floordiv(o, per_group) if conv.groups > 1 else 0
        inside = tirx.floormod(o, per_group) if conv.groups > 1 else o
        data = pixel(source, conv, b, y * sh + ry * dh, z * sw + rx * dw, group * ic + rc)
        at = weight[group * chunks + tirx.floordiv(inside, lanes), ry, rx, rc, tirx.floormod(inside, lanes)]
        return te.sum(data * widened(at), axis=[ry, rx, rc])

    return te.compute(
        shaped(x, conv, n, oh, ow, conv.out_channels),
        element,
        name="conv2d",
        attrs={KERNEL: "conv2d", **conv.attributes()},
    )


def transposed(x: te.Tensor, weight: te.Tensor, conv: Conv) -> te.Tensor:
    """A transposed convolution with weights from `pack_conv`; `conv.padding` is cut off the result."""
    n, h, w, ic = extents(x, conv)
    _, kh, kw, _, lanes = weight.shape
    sh, sw = conv.strides
    top, left, bottom, right = conv.padding
    oh, ow = (h - 1) * sh + kh - top - bottom, (w - 1) * sw + kw - left - right
    ry, rx, rc = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx"), te.reduce_axis((0, ic), "rc")

    def element(b: Expr, *position: Expr) -> Expr:
        y, z, o = place(position, conv)
        py, px = y + top - ry, z + left - rx
        iy, ix = tirx.floordiv(py, sh), tirx.floordiv(px, sw)
        reached = tirx.all(tirx.floormod(py, sh) <= 0, tirx.floormod(px, sw) <= 0, iy >= 0, iy < h, ix >= 0, ix < w)
        data = tirx.if_then_else(reached, pixel(x, conv, b, iy, ix, rc), tirx.const(0.0, x.dtype))
        at = weight[tirx.floordiv(o, lanes), ry, rx, rc, tirx.floormod(o, lanes)]
        return te.sum(data * widened(at), axis=[ry, rx, rc])

    shape = shaped(x, conv, n, oh, ow, conv.out_channels)
    return te.compute(shape, element, name="transposed", attrs={KERNEL: "transposed", **conv.attributes()})


def packed_conv(weight: te.Tensor, groups: int, lanes: int) -> te.Tensor:
    """`pack_conv` at run time, for weights that are not constant."""
    out, ic, kh, kw = weight.shape
    per_group = int(out) // groups
    chunks = -(-per_group // lanes)

    def element(chunk: Expr, y: Expr, z: Expr, i: Expr, lane: Expr) -> Expr:
        inside = tirx.floormod(chunk, chunks) * lanes + lane
        at = tirx.floordiv(chunk, chunks) * per_group + inside
        return tirx.if_then_else(inside < per_group, weight[at, i, y, z], tirx.const(0.0, weight.dtype))

    return te.compute((groups * chunks, kh, kw, ic, lanes), element, name="packed")


def depthwise(x: te.Tensor, weight: te.Tensor, conv: Conv) -> te.Tensor:
    """A convolution with one filter for each channel; `weight` is (kh, kw, c)."""
    source = padded(x, conv)
    n, height, width, _ = extents(x, conv)
    oh, ow = conv.out_size(height, width)
    kh, kw, channels = weight.shape
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
    sh, sw = conv.strides
    dh, dw = conv.dilation

    def element(b: Expr, *position: Expr) -> Expr:
        y, z, c = place(position, conv)
        data = pixel(source, conv, b, y * sh + ry * dh, z * sw + rx * dw, c)
        return te.sum(data * widened(weight[ry, rx, c]), axis=[ry, rx])

    return te.compute(
        shaped(x, conv, n, oh, ow, channels),
        element,
        name="depthwise",
        attrs={KERNEL: "depthwise", **conv.attributes()},
    )


def dense(x: te.Tensor, weight: te.Tensor, columns: int) -> te.Tensor:
    """x (..., k) times a matrix from `pack_matrix`; also the 1x1 convolution."""
    _, depth, lanes = weight.shape
    k = te.reduce_axis((0, depth), "k")

    def element(*at: Expr) -> Expr:
        left = (*at[:-1], k)
        right = weight[tirx.floordiv(at[-1], lanes), k, tirx.floormod(at[-1], lanes)]
        return te.sum(x[left] * widened(right), axis=[k])

    return te.compute((*x.shape[:-1], columns), element, name="dense", attrs={KERNEL: "dense"})


def matmul(a: te.Tensor, b: te.Tensor) -> te.Tensor:
    """a (..., m, k) times b (..., k, n) with broadcast leading axes."""
    rank = max(len(a.shape), len(b.shape))
    lead = [_broadcast(a, b, rank, i) for i in range(rank - 2)]
    k = te.reduce_axis((0, a.shape[-1]), "k")

    def operand(tensor: te.Tensor, at: tuple[Expr, ...], row: Expr, column: Expr) -> Expr:
        skip = rank - len(tensor.shape)
        batch = [0 if _is_one(s) else i for s, i in zip(tensor.shape[:-2], at[skip : rank - 2], strict=True)]
        place = (*batch, row, column)
        return tensor[place]

    return te.compute(
        (*lead, a.shape[-2], b.shape[-1]),
        lambda *at: te.sum(operand(a, at, at[-2], k) * widened(operand(b, at, k, at[-1])), axis=[k]),
        name="matmul",
        attrs={KERNEL: "matmul"},
    )


def _broadcast(a: te.Tensor, b: te.Tensor, rank: int, axis: int) -> Expr:
    sizes = [t.shape[axis - (rank - len(t.shape))] for t in (a, b) if axis >= rank - len(t.shape)]
    return next((s for s in sizes if not _is_one(s)), sizes[0])


def _is_one(extent: Expr) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent.value) == 1


def pack_conv(weight: Array, groups: int, lanes: int) -> Array:
    """Pack (o, i, kh, kw) as (chunks, kh, kw, i, lanes); zeros fill the last chunk of each group."""
    out, ic, kh, kw = weight.shape
    per_group = out // groups
    chunks = -(-per_group // lanes)
    packed = np.zeros((groups, chunks * lanes, ic, kh, kw), weight.dtype)
    packed[:, :per_group] = weight.reshape(groups, per_group, ic, kh, kw)
    packed = packed.reshape(groups * chunks, lanes, ic, kh, kw)
    return np.ascontiguousarray(packed.transpose(0, 3, 4, 2, 1))


def pack_matrix(matrix: Array, lanes: int) -> Array:
    """Pack (k, n) as (chunks, k, lanes); zeros fill the last chunk."""
    depth, columns = matrix.shape
    chunks = -(-columns // lanes)
    padded = np.zeros((depth, chunks * lanes), matrix.dtype)
    padded[:, :columns] = matrix
    return np.ascontiguousarray(padded.reshape(depth, chunks, lanes).transpose(1, 0, 2))


def shape_of(value: tvm.ir.Expr) -> list[int | None]:
    """Return the extents of a Relax tensor, None for symbolic ones; [] if the shape is unknown."""
    shape = getattr(value.ty, "shape", None)
    if shape is None:
        return []
    return [int(s.value) if isinstance(s, tirx.IntImm) else None for s in shape.values]
