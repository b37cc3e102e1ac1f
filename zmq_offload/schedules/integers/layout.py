"""The layout pass for integers: products of 8-bit activations with int8 weights become kernels with packed weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import Call, Expr

from zmq_offload.schedules.integers import operators as integer_operators
from zmq_offload.schedules.integers.dot_product import INTEGERS, dot_product_of, lane_product, pack, tile_of
from zmq_offload.schedules.integers.operators import Phases
from zmq_offload.schedules.machine import Machine
from zmq_offload.schedules.operators import Array, Conv, shape_of
from zmq_offload.schedules.simplify import constant_expr
from zmq_offload.schedules.tvm_internals import operator_name


def is_integer_product(call: Call) -> bool:
    """Return whether `call` sums products of 8-bit activations and int8 weights in int32."""
    data, weight = (str(a.ty.dtype) for a in call.args[:2])
    return data in INTEGERS and weight == "int8" and str(call.ty.dtype) == "int32"


def is_integer_convolution(call: Call) -> bool:
    """Return whether a convolution is an integer product with a kernel: the rank of its image has to be known."""
    return is_integer_product(call) and bool(shape_of(call.args[0]))


def matmul(builder: relax.BlockBuilder, machine: Machine, data: Expr, matrix: Array | None) -> Expr | None:
    """Emit a product with a constant matrix; None if it has another right operand."""
    if matrix is None or matrix.ndim != 2 or data.ty.ndim < 1 or data.ty.shape is None:
        return None
    return dense(builder, machine, data, matrix)


def dense(builder: relax.BlockBuilder, machine: Machine, data: Expr, matrix: Array) -> Expr:
    """Emit rows of `data` times a constant int8 matrix (k, n)."""
    sizes = shape_of(data)[:-1]
    rows = None if None in sizes else int(np.prod([s or 1 for s in sizes]))
    columns = matrix.shape[1]
    weights = matrix.T[None, :, None, :]
    dot = dot_product_of(machine, str(data.ty.dtype), weights)
    lanes = tile_of(machine, dot, rows, columns).columns
    packed = constant_expr(pack(weights, dot, lanes))
    return builder.call_te(
        lambda x, w: integer_operators.dense(x, w, columns, dot), data, packed, primfunc_name_hint="integer_dense"
    )


def conv2d(builder: relax.BlockBuilder, machine: Machine, data: Expr, weight: Array, conv: Conv) -> Expr:
    """Emit a convolution over (n, h, w, c) with constant int8 weights (o, i, kh, kw)."""
    per_group = conv.out_channels // conv.groups
    if conv.groups == weight.shape[1] * conv.groups == conv.out_channels > 1 and not conv.channels_first:
        return depthwise(builder, machine, data, weight[:, 0], conv)
    pointwise = conv.kernel == (1, 1) and conv.strides == (1, 1) and conv.groups == 1 and not any(conv.padding)
    if pointwise and not conv.channels_first:
        return dense(builder, machine, data, weight[:, :, 0, 0].T)
    rows = weight.transpose(0, 2, 3, 1).reshape(conv.groups, per_group, conv.kernel[0], conv.kernel[1], -1)
    if integer_operators.joined(conv):
        rows = rows.reshape(conv.groups, per_group, conv.kernel[0], -1)
    else:
        rows = rows.reshape(conv.groups, per_group, conv.kernel[0] * conv.kernel[1], -1)
    dot = dot_product_of(machine, str(data.ty.dtype), rows)
    size = shape_of(data)[3 if conv.channels_first else 1 if conv.upright else -2]
    results = None if size is None else conv.out_width(size)
    lanes = tile_of(machine, dot, results, per_group).columns
    packed = constant_expr(pack(rows, dot, lanes))
    return builder.call_te(
        lambda x, w: integer_operators.conv2d(x, w, conv, dot), data, packed, primfunc_name_hint="integer_conv2d"
    )


def depthwise(builder: relax.BlockBuilder, machine: Machine, data: Expr, filters: Array, conv: Conv) -> Expr:
    """Emit a convolution over (n, h, w, c) with one constant int8 filter (kh, kw) for each channel."""
    dot = lane_product(machine, str(data.ty.dtype))
    phases = Phases.of(conv, dot)
    channels, kh, kw = filters.shape
    shifted = np.zeros((channels, phases.count, kw, phases.depth), "int8")
    for phase in range(phases.count):
        top = phase * conv.strides[0]
        shifted[:, phase, :, top : top + kh] = filters.transpose(0, 2, 1)
    rows = shifted.reshape(1, channels, phases.count * kw, phases.depth)
    packed = constant_expr(pack(rows, dot, channels, phases.count))
    return builder.call_te(
        lambda x, w: integer_operators.depthwise(x, w, conv, dot), data, packed, primfunc_name_hint="integer_depthwise"
    )


@dataclass(frozen=True)
class Padding:
    """A padding of the image axes with one value, taken off the operand of a convolution."""

    data: Expr  # what is padded
    widths: tuple[int, int, int, int]  # top, left, bottom, right
    fill: int


def padding(pad: Expr, channels_last: bool) -> Padding | None:
    """Return `pad` as a padding of an image (n, c, h, w), or (n, h, w, c) if `channels_last`; None if it is none."""
    if operator_name(pad) != "relax.nn.pad" or str(pad.attrs.pad_mode) != "constant":
        return None
    widths = [int(w) for w in pad.attrs.pad_width]
    axes = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)]
    image = axes[1:-1] if channels_last else axes[2:]
    others = [axes[0], axes[-1] if channels_last else axes[1]]
    if any(w != (0, 0) for w in others) or any(w < 0 for w in widths) or len(image) not in (1, 2):
        return None
    (top, bottom), (left, right) = image if len(image) == 2 else [(0, 0), *image]
    return Padding(pad.args[0], (top, left, bottom, right), int(float(pad.attrs.pad_value)))
