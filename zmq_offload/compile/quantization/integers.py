"""Products and convolutions of quantized tensors, computed in integers with int32 sums.

Each takes 8-bit operands with zero points and returns the int32 sum of (x - x's zero point) * (w - w's zero point). The
kernels compute sums of x * w; what the zero points add is added after them, and computed here where it is constant.
The kernels' weights are int8: unsigned ones are moved by 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Expr

from zmq_offload.protocol.payload import Array

op = relax.op
BYTES = ("int8", "uint8")


@dataclass(frozen=True)
class Window:
    """How a convolution moves: `pads` are those before each spatial axis, then those after."""

    strides: Sequence[int]
    pads: Sequence[int]
    dilations: Sequence[int]
    groups: int


def array_of(value: Expr | None) -> Array | None:
    """The value of a constant tensor; None for any other expression."""
    if isinstance(value, tvm.ir.GenericConst) and isinstance(value.value, tvm.runtime.Tensor):
        return np.asarray(value.value.numpy())
    return None


def matmul(bb: relax.BlockBuilder, a: Expr, b: Expr, a_zero: Expr | None, b_zero: Expr | None) -> Expr:
    """The product of [..., M, K] and [..., K, N], both 8 bits wide, as int32.

    Zero points broadcast against their matrix: those of `a` are one or one per row, those of `b` one or one per column.
    """
    if a.ty.ndim == 1 or b.ty.ndim == 1:
        flat = [axis for axis, matrix in ((-2, a), (-1, b)) if matrix.ty.ndim == 1]
        a = bb.normalize(op.expand_dims(a, 0)) if a.ty.ndim == 1 else a
        b = bb.normalize(op.expand_dims(b, 1)) if b.ty.ndim == 1 else b
        return op.squeeze(bb.normalize(matmul(bb, a, b, a_zero, b_zero)), flat)
    b, b_zero = _signed(bb, b, b_zero)
    result = bb.normalize(op.matmul(a, b, out_dtype="int32"))
    if not is_zero(a_zero):
        result = _minus(bb, result, a_zero, _sums(bb, b, b_zero, [-2]))
    if not is_zero(b_zero):
        rows = bb.normalize(op.sum(bb.normalize(op.astype(a, "int32")), [-1], True))
        result = _minus(bb, result, b_zero, rows)
    return result


def convolution(
    bb: relax.BlockBuilder, x: Expr, w: Expr, x_zero: Expr | None, w_zero: Expr | None, window: Window
) -> Expr:
    """The convolution of [N, C, ...] by [O, C / groups, ...], both 8 bits wide, as int32.

    The zero point of `x` is one number, that of `w` broadcasts against it: one number or one per output channel.
    """
    spatial = x.ty.ndim - 2
    x = bb.normalize(_padded(bb, x, x_zero, window.pads))
    w, w_zero = _signed(bb, w, w_zero)
    result = bb.normalize(_convolved(x, w, window))
    per_channel = (1, -1, *(1,) * spatial)
    if not is_zero(x_zero):
        sums = _sums(bb, w, w_zero, list(range(1, 2 + spatial)))
        result = _minus(bb, result, x_zero, bb.normalize(_reshaped(sums, per_channel)))
    if not is_zero(w_zero):
        kernel = [int(d) for d in w.ty.shape.values]
        ones = relax.const(np.ones((window.groups, *kernel[1:]), np.int8))
        totals = bb.normalize(_convolved(x, ones, window))
        if window.groups > 1:
            totals = bb.normalize(op.repeat(totals, kernel[0] // window.groups, 1))
        array = array_of(w_zero)
        if w_zero is not None and (w_zero.ty.ndim > 0 if array is None else array.size > 1):
            w_zero = bb.normalize(_reshaped(w_zero, per_channel))
        result = _minus(bb, result, w_zero, totals)
    return result


def is_zero(zero: Expr | None) -> bool:
    """Whether a zero point is known to be 0 everywhere."""
    array = array_of(zero)
    return zero is None or (array is not None and not array.any())


def _convolved(x: Expr, w: Expr, window: Window) -> Expr:
    convolve = {3: op.nn.conv1d, 4: op.nn.conv2d, 5: op.nn.conv3d}[x.ty.ndim]
    return convolve(x, w, list(window.strides), 0, list(window.dilations), groups=window.groups, out_dtype="int32")


def _padded(bb: relax.BlockBuilder, x: Expr, zero: Expr | None, pads: Sequence[int]) -> Expr:
    """Pad with the zero point, which stands for the value 0."""
    if not any(pads):
        return x
    spatial = len(pads) // 2
    widths = [0, 0, 0, 0, *(n for axis in range(spatial) for n in (pads[axis], pads[axis + spatial]))]
    known = np.zeros(1) if zero is None else array_of(zero)
    if known is not None:
        return op.nn.pad(x, widths, "constant", float(known.reshape(-1)[0]))
    # The zero point is computed when the model runs: it replaces the padding.
    padded = bb.normalize(op.nn.pad(x, widths, "constant", 0))
    inside = bb.normalize(_inside(bb, list(x.ty.shape.values[2:]), widths))
    return op.where(inside, padded, bb.normalize(op.astype(zero, str(x.ty.dtype))))


def _inside(bb: relax.BlockBuilder, extents: list[Expr], widths: list[int]) -> Expr:
    """Where a padded image is not padding; a constant if its size is known, which NumPy makes faster than TVM."""
    if all(isinstance(e, tvm.tirx.IntImm) for e in extents):
        pairs = list(zip(widths[::2], widths[1::2], strict=True))
        return relax.const(np.pad(np.ones([1, 1, *map(int, extents)], bool), pairs))
    ones = bb.normalize(op.ones(relax.ShapeExpr([1, 1, *extents]), "uint8"))
    return op.astype(bb.normalize(op.nn.pad(ones, widths, "constant", 0)), "bool")


def _signed(bb: relax.BlockBuilder, w: Expr, zero: Expr | None) -> tuple[Expr, Expr | None]:
    """Weights as int8 with an int32 zero point; without one where the differences are int8, too."""
    moved = 128 if str(w.ty.dtype) == "uint8" else 0
    array, zeros = array_of(w), np.zeros((), np.int32) if zero is None else array_of(zero)
    if array is not None and zeros is not None:
        differences = array.astype(np.int32) - zeros
        if differences.min(initial=0) >= -128 and differences.max(initial=0) <= 127:
            return relax.const(differences.astype(np.int8)), None
    if array is not None:
        w = relax.const((array.astype(np.int32) - moved).astype(np.int8))
    elif moved:
        w = bb.normalize(op.astype(bb.normalize(op.subtract(op.astype(w, "int16"), relax.const(128, "int16"))), "int8"))
    if zeros is not None:
        shifted = zeros.astype(np.int32) - moved
        return w, relax.const(shifted) if shifted.any() else None
    assert zero is not None
    wide = bb.normalize(op.astype(zero, "int32"))
    return w, bb.normalize(op.subtract(wide, relax.const(moved, "int32"))) if moved else wide


def _sums(bb: relax.BlockBuilder, w: Expr, zero: Expr | None, axes: list[int]) -> Expr:
    """The sums of w - zero over `axes`, which are kept with an extent of 1."""
    array, zeros = array_of(w), np.zeros((), np.int32) if zero is None else array_of(zero)
    if array is not None and zeros is not None:
        return relax.const((array.astype(np.int32) - zeros).sum(tuple(axes), dtype=np.int32, keepdims=True))
    wide = bb.normalize(op.astype(w, "int32"))
    wide = wide if zero is None else bb.normalize(op.subtract(wide, zero))
    return bb.normalize(op.sum(wide, axes, True))


def _minus(bb: relax.BlockBuilder, result: Expr, zero: Expr | None, sums: Expr) -> Expr:
    """result - zero * sums, where each of them may be constant."""
    known, totals = array_of(zero), array_of(sums)
    if known is not None and totals is not None:
        return bb.normalize(op.subtract(result, relax.const(known.astype(np.int32) * totals)))
    factor = bb.normalize(op.astype(zero, "int32")) if known is None else relax.const(known.astype(np.int32))
    return bb.normalize(op.subtract(result, bb.normalize(op.multiply(factor, sums))))


def _reshaped(value: Expr, shape: Sequence[int]) -> Expr:
    array = array_of(value)
    return op.reshape(value, list(shape)) if array is None else relax.const(array.reshape(shape))
