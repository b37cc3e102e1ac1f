"""Fourier transforms, windows and mel weights. A transform is a product with a constant matrix."""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import relax, te

from zmq_offload.compile.operators.node import Node, dtype_of
from zmq_offload.compile.operators.tvm_importer import Builder, Expr, datatype
from zmq_offload.protocol.payload import Array

op = relax.op

DIRECT = 1024
"""The longest transform that is one matrix. A longer one is done in steps, if its length has divisors."""

WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}
"""a, b and c of a - b cos(x) + c cos(2x)."""


def window(bb: Builder, node: Node) -> Expr:
    size = _number(node, 0)
    a, b, c = WINDOWS[node.operator]
    steps = size if node.attributes.flag("periodic", True) else size - 1
    x = 2 * np.pi * np.arange(int(size)) / steps
    kind = datatype(node.attributes.integer("output_datatype", 1))
    return relax.const((a - b * np.cos(x) + c * np.cos(2 * x)).astype(kind), kind)


def mel_weight_matrix(bb: Builder, node: Node) -> Expr:
    bins, length, rate, low, high = (_number(node, i) for i in range(5))
    ends = 2595 * np.log10(1 + np.array([low, high]) / 700)
    places = ends[0] + np.arange(bins + 2) * (ends[1] - ends[0]) / (bins + 2)
    edges = ((length + 1) * (700 * (10 ** (places / 2595) - 1)) // rate).astype(int)
    table = np.zeros((int(length) // 2 + 1, int(bins)))
    for i, (left, center, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        if left == center:
            table[center, i] = 1
        else:
            table[left : center + 1, i] = np.arange(center - left + 1) / (center - left)
        if right > center:
            table[center:right, i] = np.arange(right - center, 0, -1) / (right - center)
    kind = datatype(node.attributes.integer("output_datatype", 1))
    return relax.const(table.astype(kind), kind)


def dft(bb: Builder, node: Node) -> Expr:
    x, attributes = node.inputs[0], node.attributes
    inverse, half = attributes.flag("inverse"), attributes.flag("onesided")
    if node.opset < 20:
        axis = attributes.integer("axis", 1)
    else:
        given = node.constant(2)
        axis = -2 if given is None else int(given.reshape(-1)[0])
    axis %= x.ty.ndim
    extent = x.ty.shape.values[axis]
    wanted = node.constant(1)
    if wanted is None and not isinstance(extent, tvm.tirx.IntImm):
        raise node.refused("its length is symbolic", "give that dimension a fixed extent")
    length = int(wanted.reshape(-1)[0]) if wanted is not None else int(extent)
    if wanted is None and inverse and half:
        length = 2 * (length - 1)
    order = [i for i in range(x.ty.ndim) if i != axis]
    order.insert(-1, axis)
    x = bb.normalize(op.permute_dims(x, order))
    if inverse and half:
        x = _whole(bb, _fit(bb, x, length // 2 + 1), length)
    x = _transform(bb, node, _fit(bb, x, length), inverse)
    if half and not inverse:
        x = bb.normalize(op.strided_slice(x, [-2], [0], [length // 2 + 1]))
    if inverse:
        x = bb.normalize(op.divide(x, relax.const(length, dtype_of(x))))
        x = bb.normalize(op.strided_slice(x, [-1], [0], [1])) if half else x
    return op.permute_dims(x, np.argsort(order).tolist())


def stft(bb: Builder, node: Node) -> Expr:
    """Frames of the signal, times the window, times the matrix of the transform. The length may be symbolic."""
    x, step, weights = node.inputs[0], int(_number(node, 1)), node.inputs[2]
    if x.ty.ndim == 2:  # ONNX Runtime takes a real signal without an axis for its one part
        x = bb.normalize(op.expand_dims(x, 2))
    given = node.constant(3)
    if given is not None:
        size = int(given.reshape(-1)[0])
    else:
        extent = (x if weights is None else weights).ty.shape.values[1 if weights is None else 0]
        if not isinstance(extent, tvm.tirx.IntImm):
            raise node.refused("its frames have a symbolic length", "give it the input frame_length")
        size = int(extent)

    def frames(signal: te.Tensor, *window: te.Tensor) -> te.Tensor:
        batch, length, parts = signal.shape

        def element(b: Expr, f: Expr, n: Expr, part: Expr) -> Expr:
            value = signal[b, f * step + n, part]
            return value * window[0][n] if window else value

        return te.compute((batch, (length - size) // step + 1, size, parts), element, name="frames", tag="injective")

    x = bb.emit_te(frames, *([x] if weights is None else [x, weights]), primfunc_name_hint="frames")
    x = _transform(bb, node, x, False)
    return op.strided_slice(x, [2], [0], [size // 2 + 1]) if node.attributes.flag("onesided", True) else x


def _number(node: Node, index: int) -> float:
    value = node.constant(index)
    assert value is not None
    return value.reshape(-1)[0].item()  # type: ignore[no-any-return]  # of any datatype


def _fit(bb: Builder, x: Expr, length: int) -> Expr:
    """Cut the last axis but one to a length, or fill it with zeros."""
    extent = x.ty.shape.values[-2]
    if isinstance(extent, tvm.tirx.IntImm) and int(extent) == length:
        return x

    def fit(data: te.Tensor) -> te.Tensor:
        def element(*at: Expr) -> Expr:
            return tvm.tirx.if_then_else(at[-2] < extent, data[at], tvm.tirx.const(0, data.dtype))

        return te.compute((*data.shape[:-2], length, data.shape[-1]), element, name="fit", tag="injective")

    return bb.emit_te(fit, x, primfunc_name_hint="fit")


def _whole(bb: Builder, x: Expr, length: int) -> Expr:
    """The whole spectrum of a real signal from its half: the rest is its mirror image, conjugated."""
    places = np.arange(length)
    mirrored = places > length // 2
    signs = np.stack([np.ones(length), np.where(mirrored, -1.0, 1.0)], -1).astype(dtype_of(x))
    taken = op.take(x, relax.const(np.where(mirrored, length - places, places), "int64"), x.ty.ndim - 2, mode="clip")
    return bb.normalize(op.multiply(taken, relax.const(signs)))


def _matrix(length: int, parts: int, sign: int) -> Array:
    """The matrix of a transform, [length * parts, length * 2]: real and imaginary parts lie side by side."""
    angle = sign * 2 * np.pi * (np.outer(np.arange(length), np.arange(length)) % length) / length
    real, imaginary = np.cos(angle), np.sin(angle)
    rows = [np.stack([real, imaginary], -1), np.stack([-imaginary, real], -1)][:parts]
    return np.stack(rows, 1).reshape(length * parts, length * 2)


def _transform(bb: Builder, node: Node, x: Expr, inverse: bool) -> Expr:
    """Transform the last axis but one; the last has the real part, and the imaginary one if there is one."""
    kind, sign = dtype_of(x), 1 if inverse else -1
    *outer, extent, parts = x.ty.shape.values
    length, parts = int(extent), int(parts)
    first = next((a for a in range(math.isqrt(length), 1, -1) if length % a == 0), 1) if length > DIRECT else length
    if first == 1:
        raise node.refused(f"its length {length} is a prime number above {DIRECT}", "pad the signal")
    if first == length:
        flat = bb.normalize(op.reshape(x, relax.ShapeExpr([*outer, length * parts])))
        product = bb.normalize(op.matmul(flat, relax.const(_matrix(length, parts, sign).astype(kind), kind)))
        return bb.normalize(op.reshape(product, relax.ShapeExpr([*outer, length, 2])))
    # Place n1 * second + n2 of the signal and k1 + first * k2 of the spectrum (Cooley and Tukey).
    second, rank = length // first, len(outer)
    keep = list(range(rank))
    swapped = [*keep, rank + 1, rank, rank + 2]
    x = bb.normalize(op.reshape(x, relax.ShapeExpr([*outer, first, second, parts])))
    x = _transform(bb, node, bb.normalize(op.permute_dims(x, swapped)), inverse)
    angle = sign * 2 * np.pi * np.outer(np.arange(second), np.arange(first)) / length
    x = _turned(bb, x, angle)
    x = _transform(bb, node, bb.normalize(op.permute_dims(x, swapped)), inverse)
    x = bb.normalize(op.permute_dims(x, swapped))
    return bb.normalize(op.reshape(x, relax.ShapeExpr([*outer, length, 2])))


def _turned(bb: Builder, x: Expr, angle: Array) -> Expr:
    """Multiply complex numbers by those of length 1 with the given angles."""
    kind, last = dtype_of(x), x.ty.ndim - 1
    other = op.take(x, relax.const([1, 0], "int64"), last, mode="clip")
    straight = np.cos(angle)[..., None]
    crossed = np.stack([-np.sin(angle), np.sin(angle)], -1)
    product = op.multiply(x, relax.const(straight.astype(kind), kind))
    return bb.normalize(op.add(product, op.multiply(other, relax.const(crossed.astype(kind), kind))))
