"""Three-dimensional convolutions: tensor expressions over (n, d, h, w, c), and how the layout pass makes them.

The rules for images schedule them. They count the planes of the result as a part of the batch, and sum over the taps of
the depth outside those of the rows.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import te, tirx
from tvm.ir import Call, Expr

from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.operators import Array, Conv, Depth, pack_conv, shape_of
from zmq_offload.schedules.simplify import constant_expr
from zmq_offload.schedules.stages import KERNEL
from zmq_offload.schedules.tiles import choose_tile
from zmq_offload.schedules.weights import widened

Emit = Callable[..., Call]
"""Emits a call of a kernel: its name, its tensor expression, its operands."""


def geometry(call: Call) -> Conv | None:
    """Return the geometry of a `relax.nn.conv3d`; None for a layout or datatype without a kernel."""
    attrs, (data, weight) = call.attrs, call.args
    if (str(attrs.data_layout), str(attrs.kernel_layout)) != ("NCDHW", "OIDHW") or None in shape_of(weight):
        return None
    if any(str(ty.dtype) != "float32" for ty in (call.ty, data.ty, weight.ty)):
        return None
    out, _, kd, kh, kw = (size or 0 for size in shape_of(weight))
    front, top, left, back, bottom, right = (int(p) for p in attrs.padding)
    (sd, sh, sw), (dd, dh, dw) = ([int(v) for v in values] for values in (attrs.strides, attrs.dilation))
    depth = Depth(kd, sd, front, back, dd)
    groups = int(attrs.groups)
    return Conv((kh, kw), (sh, sw), (top, left, bottom, right), (dh, dw), groups, out, depth=depth)


def pointwise(conv: Conv) -> bool:
    """Return whether a convolution only mixes the channels of each place."""
    return conv == Conv((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, conv.out_channels, depth=Depth(1, 1, 0, 0, 1))


def convolution(machine: Machine, conv: Conv, data: Expr, weights: Array, emit: Emit) -> Call:
    """Emit a convolution of channels-last `data` with constant weights (o, i, kd, kh, kw)."""
    out, per_group, kd, kh, kw = weights.shape
    sizes = shape_of(data)
    if conv.groups == sizes[-1] == out and out > 1:
        filters = constant_expr(weights[:, 0].reshape(out, kd * kh, kw).transpose(1, 2, 0))
        return emit("depthwise", lambda x, w: depthwise3d(x, w, conv), data, filters)
    width = sizes[-2]
    results = None if width is None else int(conv.out_size(tirx.IntImm("int64", 1), tirx.IntImm("int64", width))[1])
    lanes = choose_tile(machine, results, out // conv.groups).columns
    packed = constant_expr(pack_conv(weights.reshape(out, per_group, kd * kh, kw), conv.groups, lanes))
    return emit("conv3d", lambda x, w: conv3d(x, w, conv), data, packed)


def _padded(x: te.Tensor, conv: Conv, depth: Depth) -> te.Tensor:
    """Return the input with zeros around; the input itself without padding."""
    n, d, h, w, c = x.shape
    top, left, bottom, right = conv.padding
    if not any((*conv.padding, depth.front, depth.back)):
        return x

    def element(b: Expr, p: Expr, y: Expr, z: Expr, i: Expr) -> Expr:
        p, y, z = p - depth.front, y - top, z - left
        inside = tirx.all(p >= 0, p < d, y >= 0, y < h, z >= 0, z < w)
        return tirx.if_then_else(inside, x[b, p, y, z, i], tirx.const(0.0, x.dtype))

    shape = (n, d + depth.front + depth.back, h + top + bottom, w + left + right, c)
    return te.compute(shape, element, name="pad", attrs={KERNEL: "pad"})


def _sizes(x: te.Tensor, conv: Conv, depth: Depth) -> list[Expr]:
    """Return n, d, h, w of the result."""
    n, d, h, w, _ = x.shape
    return [n, depth.out_size(d), *conv.out_size(h, w)]


def _position(conv: Conv, depth: Depth, result: list[Expr], taps: list[Expr]) -> list[Expr]:
    """Return the place in the padded input that a result reads with a tap."""
    strides, dilations = (depth.stride, *conv.strides), (depth.dilation, *conv.dilation)
    return [r * s + t * d for r, s, t, d in zip(result, strides, taps, dilations, strict=True)]


def _taps(conv: Conv, depth: Depth) -> list[tirx.IterVar]:
    sizes = zip((depth.kernel, *conv.kernel), ("rd", "ry", "rx"), strict=True)
    return [te.reduce_axis((0, size), name) for size, name in sizes]


def conv3d(x: te.Tensor, weight: te.Tensor, conv: Conv) -> te.Tensor:
    """A dense or grouped convolution with weights (o, i, kd * kh, kw) from `pack_conv`."""
    assert conv.depth is not None
    depth, source = conv.depth, _padded(x, conv, conv.depth)
    *_, ic, lanes = weight.shape
    per_group = conv.out_channels // conv.groups
    chunks = -(-per_group // int(lanes))
    taps, rc = _taps(conv, depth), te.reduce_axis((0, ic), "rc")

    def element(b: Expr, *at: Expr) -> Expr:
        o = at[-1]
        group = tirx.floordiv(o, per_group) if conv.groups > 1 else 0
        inside = tirx.floormod(o, per_group) if conv.groups > 1 else o
        place = (b, *_position(conv, depth, list(at[:-1]), taps), group * ic + rc)
        chunk = group * chunks + tirx.floordiv(inside, lanes)
        right = weight[chunk, taps[0] * conv.kernel[0] + taps[1], taps[2], rc, tirx.floormod(inside, lanes)]
        return te.sum(source[place] * widened(right), axis=[*taps, rc])

    shape = (*_sizes(x, conv, depth), conv.out_channels)
    return te.compute(shape, element, name="conv3d", attrs={KERNEL: "conv2d", **conv.attributes()})


def depthwise3d(x: te.Tensor, weight: te.Tensor, conv: Conv) -> te.Tensor:
    """A convolution with one filter for each channel; `weight` is (kd * kh, kw, c)."""
    assert conv.depth is not None
    depth, source = conv.depth, _padded(x, conv, conv.depth)
    taps = _taps(conv, depth)

    def element(b: Expr, *at: Expr) -> Expr:
        place = (b, *_position(conv, depth, list(at[:-1]), taps), at[-1])
        right = weight[taps[0] * conv.kernel[0] + taps[1], taps[2], at[-1]]
        return te.sum(source[place] * widened(right), axis=taps)

    shape = (*_sizes(x, conv, depth), conv.out_channels)
    return te.compute(shape, element, name="depthwise3d", attrs={KERNEL: "depthwise", **conv.attributes()})
