"""Averages of quantized tensors, as int32 sums of the bytes."""

from __future__ import annotations

import numpy as np
from tvm import relax, tirx
from tvm.ir import Call, Expr

from zmq_offload.compile.quantization import integers
from zmq_offload.compile.quantization.integers import Window
from zmq_offload.protocol.payload import Array
from zmq_offload.schedules.tvm_internals import operator_name

op = relax.op

AVERAGES = ("relax.mean", "relax.nn.adaptive_avg_pool2d", "relax.nn.avg_pool2d")
_MOST = 2**23
"""The number of bytes whose sum int32 holds for certain."""


def average(bb: relax.BlockBuilder, call: Call, x: Expr, zero: Array) -> tuple[Expr, Array] | None:
    """Return the sums of `x` minus its zero point, and how many each is of; None for what stays in floats.

    `call` is one of `AVERAGES`, of a tensor whose bytes are `x`.
    """
    sizes = [int(d) if isinstance(d, tirx.IntImm) else None for d in x.ty.shape.values]
    name, attributes = operator_name(call), call.attrs
    if name == "relax.nn.avg_pool2d":
        return _pool(bb, call, x, zero, sizes)
    if name == "relax.mean":
        axes = list(range(len(sizes))) if attributes.axis is None else [int(a) % len(sizes) for a in attributes.axis]
        keep = bool(attributes.keepdims)
    else:
        if str(attributes.layout) != "NCHW" or [int(s) for s in attributes.output_size or ()] != [1, 1]:
            return None
        axes, keep = [2, 3], True
    reduced = [sizes[a] for a in axes]
    count = 1
    for size in reduced:
        if size is None:
            return None
        count *= size
    if not 0 < count <= _MOST:
        return None
    total = bb.normalize(op.sum(bb.normalize(op.astype(x, "int32")), axes, keep))
    moved = int(zero.item()) * count
    return op.subtract(total, relax.const(moved, "int32")) if moved else total, np.float64(count)


def _pool(
    bb: relax.BlockBuilder, call: Call, x: Expr, zero: Array, sizes: list[int | None]
) -> tuple[Expr, Array] | None:
    """A convolution of each channel by ones."""
    attributes = call.attrs
    kernel, strides, pads, dilation = (
        [int(v) for v in values]
        for values in (attributes.pool_size, attributes.strides, attributes.padding, attributes.dilation)
    )
    if str(attributes.layout) != "NCHW" or attributes.ceil_mode or None in sizes[1:]:
        return None
    _, channels, *extents = (size or 1 for size in sizes)
    ones = relax.const(np.ones((channels, 1, *kernel), np.int8))
    sums = integers.convolution(bb, x, ones, relax.const(zero), None, Window(strides, pads, dilation, channels))
    counts = []
    for axis, extent in enumerate(extents):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        results = (extent + pads[axis] + pads[axis + 2] - reach) // strides[axis] + 1
        first = np.arange(results)[:, None] * strides[axis] - pads[axis]
        at = first + np.arange(kernel[axis]) * dilation[axis]
        inside = (at >= 0) & (at < extent) | bool(attributes.count_include_pad)
        counts.append(inside.sum(1).astype("f8"))
    count = counts[0][None, None, :, None] * counts[1]
    return sums, count.reshape(-1)[:1].reshape(()) if (count == count.flat[0]).all() else count
