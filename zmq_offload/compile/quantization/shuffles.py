"""Transposed convolutions of bytes, as ordinary ones whose channels are spread over pixels afterwards.

With stride s, result s * t + r is a sum over the inputs t, t - 1, ...: for each of the s remainders r an ordinary
convolution of stride 1. One convolution computes all of them as channels of its own, and a shuffle of its result makes
pixels of these channels. What follows element by element, up to `quantize`, is computed before the shuffle, so that
bytes are moved and the convolution has its epilogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Expr, Var

from zmq_offload.compile.quantization import integers
from zmq_offload.compile.quantization.integers import Window
from zmq_offload.protocol.payload import Array
from zmq_offload.schedules.simplify import GraphRewriter
from zmq_offload.schedules.tvm_internals import operator_name

op = relax.op

FOLLOWERS = {
    *(f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "clip")),
    *(f"relax.nn.{name}" for name in ("relu", "leakyrelu", "gelu", "silu")),
    *("relax.sigmoid", "relax.tanh", "relax.quantize"),
}
"""Operators that are computed before a shuffle, with one number or one per channel as the other operand."""


@dataclass(frozen=True)
class Shuffle:
    """How the channels (groups, remainders of each axis, columns) of a convolution become pixels.

    `starts` and `ends` are what is cut off each axis then.
    """

    groups: int
    strides: Sequence[int]
    columns: int
    starts: Sequence[int]
    ends: Sequence[int]

    def apply(self, bb: relax.BlockBuilder, x: Expr) -> Expr:
        """Channels last in between, as the kernels have them."""
        spatial, emit = len(self.strides), bb.emit
        batch, _, *extents = x.ty.shape.values
        x = emit(op.permute_dims(x, [0, *range(2, 2 + spatial), 1]))
        x = emit(op.reshape(x, relax.ShapeExpr([batch, *extents, self.groups, *self.strides, self.columns])))
        group = 1 + spatial
        pairs = [axis for i in range(spatial) for axis in (1 + i, group + 1 + i)]
        x = emit(op.permute_dims(x, [0, *pairs, group, group + 1 + spatial]))
        longer = [extent * stride for extent, stride in zip(extents, self.strides, strict=True)]
        x = emit(op.reshape(x, relax.ShapeExpr([batch, *longer, self.groups * self.columns])))
        if any((*self.starts, *self.ends)):
            axes = list(range(1, 1 + spatial))
            ends = [length - end for length, end in zip(longer, self.ends, strict=True)]
            x = emit(op.strided_slice(x, axes, list(self.starts), ends, assume_inbound=True))
        return op.permute_dims(x, [0, 1 + spatial, *range(1, 1 + spatial)])

    def spread(self, array: Array) -> Array | None:
        """One number, or one per channel of the result, as an operand before the shuffle; None for others."""
        spatial = len(self.strides)
        if array.size == 1:
            return array.reshape(())
        shape = (1,) * (2 + spatial - array.ndim) + array.shape
        if len(shape) != 2 + spatial or shape != (1, self.groups * self.columns, *(1,) * spatial):
            return None
        wide = array.reshape(self.groups, 1, self.columns)
        return np.repeat(wide, int(np.prod(self.strides)), 1).reshape(1, -1, *(1,) * spatial)


def transposed_convolution(
    bb: relax.BlockBuilder, x: Expr, w: Array, x_zero: Expr, w_zero: Array, window: Window, extra: Sequence[int]
) -> tuple[Expr, Shuffle] | None:
    """The transposed convolution of [N, C, ...] by [C, O / groups, ...]: int32 sums, and the shuffle that they need.

    None for negative padding. `w_zero` is one number or one per column; `extra` is what is added to the end of each
    axis.
    """
    spatial, groups = x.ty.ndim - 2, window.groups
    if min(window.pads) < 0:
        return None
    strides, starts, last = list(window.strides), window.pads[:spatial], window.pads[spatial:]
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], window.dilations, strict=True)]
    taps = [-(-r // s) for r, s in zip(reach, strides, strict=True)]
    tail = [r + e - p for r, e, p in zip(reach, extra, last, strict=True)]
    more = [max(-(-t // s) - 1, 0) for t, s in zip(tail, strides, strict=True)]
    # From the end of the image: the convolution has (extent + more) * stride results, of which `tail` are wanted.
    ends = [(m + 1) * s - t for m, s, t in zip(more, strides, tail, strict=True)]
    inputs, columns = w.shape[0] // groups, w.shape[1]
    zeros = np.broadcast_to(w_zero.reshape(-1), columns).astype(w.dtype)
    full = np.empty((w.shape[0], columns, *(t * s for t, s in zip(taps, strides, strict=True))), w.dtype)
    full[:] = zeros.reshape(-1, *(1,) * spatial)
    inside = (slice(0, r, d) for r, d in zip(reach, window.dilations, strict=True))
    places = (slice(None), slice(None), *inside)
    full[places] = w
    # (groups, inputs, columns, taps and remainders of each axis); the taps are reversed, as a convolution has them.
    split = full.reshape(groups, inputs, columns, *(n for t, s in zip(taps, strides, strict=True) for n in (t, s)))
    split = np.flip(split, tuple(range(3, 3 + 2 * spatial, 2)))
    order = [0, *range(4, 4 + 2 * spatial, 2), 2, 1, *range(3, 3 + 2 * spatial, 2)]
    kernel = np.ascontiguousarray(split.transpose(order).reshape(-1, inputs, *taps))
    zero = np.resize(zeros, len(kernel)).reshape(-1, *(1,) * (spatial + 1)) if w_zero.size > 1 else w_zero.reshape(())
    plain = Window([1] * spatial, [*(t - 1 for t in taps), *more], [1] * spatial, groups)
    sums = integers.convolution(bb, x, relax.const(kernel), x_zero, relax.const(zero), plain)
    return sums, Shuffle(groups, strides, columns, starts, ends)


class Shuffled:
    """The tensors of a block that are shuffled, as they are before that."""

    def __init__(self) -> None:
        self._inner: dict[Var, tuple[Expr, Shuffle]] = {}

    def add(self, bb: relax.BlockBuilder, var: Var, inner: Expr, shuffle: Shuffle) -> Expr:
        """Note what `var` of the original block is computed from; returns its value."""
        inner = bb.emit(inner)
        self._inner[var] = inner, shuffle
        return shuffle.apply(bb, inner)

    def follow(self, graph: GraphRewriter, call: Call, var: Var, uses: dict[Var, int]) -> Expr | None:
        """Compute one of `FOLLOWERS` before the shuffle of its operand; None if that cannot be."""
        if operator_name(call) not in FOLLOWERS:
            return None
        found = [a for a in call.args if isinstance(a, Var) and a in self._inner]
        if len(found) != 1 or uses[found[0]] > 1:
            return None
        inner, shuffle = self._inner[found[0]]
        args: list[Expr] = []
        for arg in call.args:
            if isinstance(arg, Var) and arg.same_as(found[0]):
                args.append(inner)
            elif isinstance(arg.ty, relax.TensorType):
                known = _known(graph, graph.visit_expr(arg))
                known = None if known is None else shuffle.spread(known)
                if known is None or (known.ndim and operator_name(call) == "relax.quantize"):
                    return None
                args.append(relax.const(known))
            else:
                args.append(arg)
        return self.add(graph.builder_, var, Call(call.op, args, call.attrs, call.ty_args), shuffle)


def _known(graph: GraphRewriter, expr: Expr) -> Array | None:
    """The value of a constant, reshaped perhaps."""
    call = graph.bound(expr)
    if operator_name(call) in ("relax.reshape", "relax.expand_dims"):
        array = graph.array(call.args[0])
        extents = [int(d) for d in call.ty.shape.values if isinstance(d, tvm.tirx.IntImm)]
        return array.reshape(extents) if array is not None and len(extents) == call.ty.ndim else None
    return graph.array(expr)
