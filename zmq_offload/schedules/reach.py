"""Which taps of a convolution's kernel reach the image: those that read only padding are dropped.

A dilation beyond the image, as in the pyramids of segmentation networks, leaves one tap of nine.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax
from tvm.ir import Call

from zmq_offload.schedules.operators import shape_of
from zmq_offload.schedules.simplify import GraphRewriter, constant_expr
from zmq_offload.schedules.tvm_internals import operator_name


def needed_taps(size: int, kernel: int, stride: int, dilation: int, before: int, results: int) -> range:
    """Return the taps from the first to the last that reads the image, for any result; an empty range if none does.

    Result o reads with tap t the position `o * stride + t * dilation - before`, which is padding outside [0, size).
    """

    def reads(tap: int) -> bool:
        first = tap * dilation - before
        inside = max(0, -(-(0 - first) // stride))  # the first result at or beyond position 0
        return inside < results and first + inside * stride < size

    needed = [tap for tap in range(kernel) if reads(tap)]
    return range(needed[0], needed[-1] + 1) if needed else range(0)


def without_idle_taps(graph: GraphRewriter, call: Call) -> Call:
    """Return a convolution with constant weights without those taps; the same call if all of them reach the image.

    The padding becomes smaller by the distance of the dropped taps. Where it would become negative, the image loses the
    rows or columns that no tap reads.
    """
    attrs, (data, weight) = call.attrs, call.args
    spatial = data.ty.ndim - 2
    half = graph.half(weight)
    array = graph.array(weight) if half is None else half
    axes, sizes, results = str(attrs.data_layout), shape_of(data), shape_of(call)
    if array is None or axes[:2] != "NC" or str(attrs.kernel_layout)[:2] != "OI" or not sizes:
        return call
    if str(attrs.out_layout) != axes or None in sizes[2:] or None in results[2:]:
        return call
    pads = [int(p) for p in attrs.padding]
    before, after = pads[:spatial], pads[spatial:]
    keep, crops = [], []
    for axis in range(spatial):
        size, kernel, dilation = sizes[axis + 2] or 0, array.shape[axis + 2], int(attrs.dilation[axis])
        taps = needed_taps(size, kernel, int(attrs.strides[axis]), dilation, before[axis], results[axis + 2] or 0)
        if not taps:
            return call
        before[axis] -= taps.start * dilation
        after[axis] -= (kernel - taps.stop) * dilation
        keep.append(slice(taps.start, taps.stop))
        crops.append((max(0, -before[axis]), size - max(0, -after[axis])))
    if all(k.stop - k.start == kernel for k, kernel in zip(keep, array.shape[2:], strict=True)):
        return call
    for axis, (start, stop) in enumerate(crops):
        if stop - start < (sizes[axis + 2] or 0):
            data = graph.builder_.emit(relax.op.strided_slice(data, [axis + 2], [start], [stop]))
    window = (slice(None), slice(None), *keep)
    kept = constant_expr(array[window])
    weight = kept if half is None else graph.builder_.emit(relax.op.astype(kept, "float32"))
    make: Callable[..., Call] = getattr(relax.op.nn, operator_name(call).rsplit(".", 1)[-1])
    result = make(
        data,
        weight,
        [int(s) for s in attrs.strides],
        [max(0, p) for p in (*before, *after)],
        [int(d) for d in attrs.dilation],
        int(attrs.groups),
        axes,
        str(attrs.kernel_layout),
        axes,
        attrs.out_dtype,
    )
    return graph.builder_.normalize(result)
