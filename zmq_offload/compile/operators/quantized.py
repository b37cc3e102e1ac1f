"""Operators that quantize, dequantize, or compute with integers."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from tvm import relax
from tvm.ir import Var

from zmq_offload.compile.operators import pools
from zmq_offload.compile.operators.node import Node, dtype_of, refuse, static_shape
from zmq_offload.compile.operators.tvm_importer import Builder, Expr, datatype
from zmq_offload.compile.quantization import integers
from zmq_offload.schedules.tvm_internals import operator_name

op = relax.op

RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
"""The datatypes that a tensor can be quantized to."""


def quantize_linear(bb: Builder, node: Node) -> Expr:
    """Round x / scale to the nearest, ties to even; add the zero point; saturate."""
    x, scale, zero = node.inputs[0], node.inputs[1], node.inputs[2]
    node.attributes.get("saturate")  # of float8, which is refused
    precision = node.attributes.integer("precision", 0)
    if precision not in (0, 1):
        refuse(node, "precision", precision, "use float32 (1), or leave it out")
    wanted = node.attributes.integer("output_dtype", 0)
    kind = dtype_of(zero) if zero is not None else _kind(node, wanted) if wanted else "uint8"
    if kind not in RANGES:
        _refuse_kind(node, kind)
    axis, scale, zero = _parameters(bb, node, x, scale, zero)
    x = bb.normalize(op.astype(x, "float32")) if dtype_of(x) != "float32" else x
    zero = relax.const(0, kind) if zero is None else zero
    if integers.array_of(zero) is not None and _per_axis(scale):
        return op.quantize(x, scale, zero, axis=axis, out_dtype=kind)
    return _saturated(bb, bb.normalize(op.divide(x, scale)), bb.normalize(op.astype(zero, "float32")), kind)


def dequantize_linear(bb: Builder, node: Node) -> Expr:
    """(x - zero point) * scale."""
    x, scale, zero = node.inputs[0], node.inputs[1], node.inputs[2]
    wanted = node.attributes.integer("output_dtype", 0)
    kind = _kind(node, wanted) if wanted else dtype_of(scale)
    if dtype_of(x) not in (*RANGES, "int32"):
        _refuse_kind(node, dtype_of(x))
    axis, scale, zero = _parameters(bb, node, x, scale, zero)
    zero = relax.const(0, dtype_of(x)) if zero is None else zero
    known = [integers.array_of(v) for v in (x, scale, zero)]
    if node.attributes.integer("block_size", 0) and not any(v is None for v in known):
        value, factor, offset = (np.asarray(v) for v in known)
        real = (value.astype("i4") - offset.astype("i4")).astype("f4") * factor
        return relax.const(real.astype(kind) if kind != "bfloat16" else real, kind)
    if kind == "float32" and integers.array_of(zero) is not None and _per_axis(scale):
        return op.dequantize(x, scale, zero, axis=axis, out_dtype=kind)
    wide = bb.normalize(op.subtract(op.astype(x, "int32"), op.astype(zero, "int32")))
    result = op.multiply(op.astype(wide, "float32"), scale)
    return result if kind == "float32" else op.astype(result, kind)


def dynamic_quantize_linear(bb: Builder, node: Node) -> Expr:
    return relax.Tuple(list(quantized_dynamically(bb, node.inputs[0])))


def quantized_dynamically(bb: Builder, x: Expr) -> tuple[Expr, Expr, Expr]:
    """Quantize to uint8: the values, scale and zero point.

    Scale and zero point are from the extremes of x and 0. The scale of zeros only is 1, as in ONNX Runtime.
    """
    zero = relax.const(0.0, "float32")
    top = bb.normalize(op.maximum(op.max(x), zero))
    bottom = zero if _is_positive(bb, x) else bb.normalize(op.minimum(op.min(x), zero))
    spread = bb.normalize(op.subtract(top, bottom))
    scale = op.where(op.equal(spread, zero), relax.const(1.0, "float32"), op.divide(spread, relax.const(255.0)))
    scale = bb.normalize(scale)
    offset = op.round(op.clip(op.divide(op.negative(bottom), scale), 0, 255))
    offset = bb.normalize(offset)
    y = _saturated(bb, bb.normalize(op.divide(x, scale)), offset, "uint8")
    return bb.normalize(y), scale, bb.normalize(op.astype(offset, "uint8"))


def _is_positive(bb: Builder, x: Expr) -> bool:
    """Whether no value of `x` is below 0, so that its minimum need not be searched."""
    value = bb.lookup_binding(x) if isinstance(x, Var) else x
    return operator_name(value) in ("relax.nn.relu", "relax.sigmoid", "relax.nn.softmax")


def matmul_integer(bb: Builder, node: Node) -> Expr:
    a, b, a_zero, b_zero = (node.inputs[i] for i in range(4))
    _check_bytes(node, a, b)
    if a_zero is not None and a_zero.ty.ndim == 1:
        a_zero = _one(a_zero) or bb.normalize(op.expand_dims(a_zero, -1))
    return integers.matmul(bb, a, b, a_zero, b_zero)


def conv_integer(bb: Builder, node: Node) -> Expr:
    x, w, x_zero, w_zero = (node.inputs[i] for i in range(4))
    _check_bytes(node, x, w)
    attributes, kernel = node.attributes, static_shape(w)
    if kernel is None:
        raise node.refused("its weights have a symbolic shape", "give them a fixed shape")
    attributes.get("kernel_shape")  # the weights have this shape
    spatial = len(kernel) - 2
    strides = attributes.integers("strides") or [1] * spatial
    if pools.write_out(node, pools.reach_of(node, kernel[2:]), strides, node.dims(0)[2:]) is not None:
        refuse(node, "auto_pad", "SAME", f"use pads; or {node.scope.to_fix(node.dims(0)[2:])}")
    window = integers.Window(
        strides,
        attributes.integers("pads") or [0] * 2 * spatial,
        attributes.integers("dilations") or [1] * spatial,
        attributes.integer("group", 1),
    )
    if w_zero is not None and w_zero.ty.ndim == 1:
        w_zero = _one(w_zero) or bb.normalize(op.reshape(w_zero, [-1, *[1] * (spatial + 1)]))
    if w_zero is not None and integers.array_of(w_zero) is not None:
        w_zero = relax.const(np.asarray(integers.array_of(w_zero)))
    return integers.convolution(bb, x, w, x_zero if x_zero is None else _one(x_zero) or x_zero, w_zero, window)


def _saturated(bb: Builder, scaled: Expr, zero: Expr, kind: str) -> Expr:
    lowest, highest = RANGES[kind]
    moved = bb.normalize(op.add(bb.normalize(op.round(scaled)), zero))
    return op.astype(bb.normalize(op.clip(moved, lowest, highest)), kind)


def _parameters(bb: Builder, node: Node, x: Expr, scale: Expr, zero: Expr | None) -> tuple[int, Expr, Expr | None]:
    """The axis, scale and zero point of a tensor. What TVM's own operators do not take broadcasts against it."""
    rank, block = x.ty.ndim, node.attributes.integer("block_size", 0)
    axis = node.attributes.integer("axis", 1)
    axis = axis % rank if rank else 0
    scale, zero = _one(scale) or scale, zero if zero is None else _one(zero) or zero
    scale = bb.normalize(op.astype(scale, "float32")) if dtype_of(scale) != "float32" else scale
    if block:
        return axis, _repeated(bb, x, scale, axis, block), None if zero is None else _repeated(bb, x, zero, axis, block)
    if not _per_axis(scale) or (zero is not None and integers.array_of(zero) is None):
        shape = [-1 if i == axis else 1 for i in range(rank)]
        scale, zero = (
            bb.normalize(op.reshape(v, shape)) if v is not None and v.ty.ndim == 1 else v for v in (scale, zero)
        )
    return axis, scale, zero


def _repeated(bb: Builder, x: Expr, value: Expr, axis: int, block: int) -> Expr:
    """Give each element of a blocked tensor the value of its block."""
    extent = x.ty.shape.values[axis]
    array = integers.array_of(value)
    if array is not None and static_shape(x) is not None:
        longer = np.repeat(array, block, axis)
        return relax.const(np.take(longer, np.arange(int(extent)), axis))
    longer = bb.normalize(op.repeat(value, block, axis))
    return bb.normalize(op.strided_slice(longer, [axis], [0], [extent]))


def _per_axis(scale: Expr) -> bool:
    """Whether a scale is a constant that TVM's own operators take: one number, or one per channel."""
    return integers.array_of(scale) is not None and scale.ty.ndim <= 1


def _one(value: Expr) -> Expr | None:
    """A constant of one element as a scalar."""
    array = integers.array_of(value)
    return relax.const(array.reshape(()), str(array.dtype)) if array is not None and array.size == 1 else None


def _check_bytes(node: Node, *operands: Expr) -> None:
    for operand in operands:
        if dtype_of(operand) not in integers.BYTES:
            _refuse_kind(node, dtype_of(operand))


def _kind(node: Node, number: int) -> str:
    try:
        return datatype(number)
    except Exception:
        _refuse_kind(node, f"ONNX's datatype {number}")


def _refuse_kind(node: Node, kind: str) -> NoReturn:
    raise node.refused(f"it is of {kind}", "quantize to int8 or uint8")
