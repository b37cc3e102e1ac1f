"""Convolutions over images of one column, as Conv1D is where frameworks have images only.

The rules compute neighboring results of a row at once. An image (n, h, 1, c) has the same values in memory as
(n, 1, h, c), so its rows are taken as the columns of one row. `Conv.upright` says so; tensors keep their shapes, so
that element-wise operators still are the epilogue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from tvm import relax
from tvm.ir import Call, Expr

from zmq_offload.schedules.channel_axes import first_axes
from zmq_offload.schedules.operators import Array, Conv, shape_of
from zmq_offload.schedules.simplify import GraphRewriter, constant_expr


def turned(conv: Conv, width: int | None) -> Conv:
    """Return the geometry along the rows if the image and the result have one column; else `conv` itself."""
    (kh, kw), (sh, _), (top, left, bottom, right), (dh, _) = conv.kernel, conv.strides, conv.padding, conv.dilation
    if width != 1 or kw != 1 or left or right:
        return conv
    return replace(conv, kernel=(1, kh), strides=(1, sh), padding=(0, top, 0, bottom), dilation=(1, dh), upright=True)


def columns_as_channels(graph: GraphRewriter, call: Call, last: Callable[[Expr], Expr]) -> Call:
    """Return a convolution whose kernel is as wide as the image as one over the rows; else `call` itself.

    All columns of a row are the channels of an image of one column. Networks for texts read embeddings so. `last`
    returns a tensor with channels last.
    """
    attrs, (data, weight) = call.attrs, call.args
    half = graph.half(weight)
    array = graph.array(weight) if half is None else half
    sizes = shape_of(data)
    if array is None or array.ndim != 4 or len(sizes) != 4 or int(attrs.groups) != 1:
        return call
    out, channels, kh, kw = array.shape
    pads = [int(p) for p in attrs.padding]
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    if layouts != ("NCHW", "OIHW", "NCHW") or kw == 1 or kw != sizes[3] or pads[1] or pads[3] or attrs.dilation[1] != 1:
        return call
    emit = graph.builder_.emit
    n, _, h, w = data.ty.shape.values
    rows = emit(relax.op.reshape(last(data), [n, h, 1, w * channels]))
    rows = emit(relax.op.permute_dims(rows, first_axes(4)))
    flat = np.ascontiguousarray(array.transpose(0, 3, 1, 2)).reshape(out, kw * channels, kh, 1)
    filters = constant_expr(flat)
    if half is not None:
        filters = emit(relax.op.astype(filters, "float32"))
    strides, dilation = [int(attrs.strides[0]), 1], [int(attrs.dilation[0]), 1]
    result = relax.op.nn.conv2d(rows, filters, strides, pads, dilation, 1, "NCHW", "OIHW", "NCHW", attrs.out_dtype)
    return graph.builder_.normalize(result)


def transposed(call: Call, weights: Array) -> tuple[Conv, Array]:
    """Return the geometry of a transposed convolution of an image or a row, and its weights as (i, o, kh, kw)."""
    attrs, lift = call.attrs, call.args[0].ty.ndim == 3
    array = weights[:, :, None] if lift else weights
    pads, extra, strides = ([int(v) for v in values] for values in (attrs.padding, attrs.output_padding, attrs.strides))
    if lift:
        pads, extra, strides = [0, pads[0], 0, pads[1]], [0, *extra], [1, *strides]
    conv = Conv(
        (array.shape[2], array.shape[3]),
        (strides[0], strides[1]),
        (pads[0], pads[1], pads[2] - extra[0], pads[3] - extra[1]),
        (1, 1),
        1,
        array.shape[1],
    )
    up = conv if lift else turned(conv, shape_of(call.args[0])[str(attrs.data_layout).index("W")])
    return up, array.transpose(0, 1, 3, 2) if up.upright else array
