"""Relax modules in the canonical form of integers: int32 products of 8-bit operands, then element-wise operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

Array = np.ndarray[Any, Any]
Steps = Callable[[relax.BlockBuilder, relax.Var], tvm.ir.Expr]

MCPUS = ("x86-64", "x86-64-v3", "x86-64-v4", "znver4")
"""CPUs with 16-bit products in 128, 256 and 512 bits, and with VNNI."""


def module(shape: Sequence[int | str], dtype: str, steps: Steps) -> tvm.IRModule:
    """A module of one input; a name is a symbolic extent."""
    builder = relax.BlockBuilder()
    known: dict[str, tirx.Var] = {}
    extents = [known.setdefault(s, tirx.Var(s, "int64")) if isinstance(s, str) else s for s in shape]
    x = relax.Var("x", relax.TensorType(extents, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(steps(builder, x))
        builder.emit_func_output(out)
    return builder.get()


@dataclass(frozen=True)
class Requantize:
    """Zero points and scales of a quantized product, for columns on `axis`."""

    corrections: Array
    scales: Array
    zero: int
    dtype: str = "uint8"
    relu: bool = False

    def steps(self, emit: Callable[[tvm.ir.Expr], relax.Var], total: tvm.ir.Expr) -> tvm.ir.Expr:
        op, info = relax.op, np.iinfo(self.dtype)
        value = emit(op.astype(emit(op.subtract(total, relax.const(self.corrections, "int32"))), "float32"))
        value = emit(op.multiply(value, relax.const(self.scales, "float32")))
        value = emit(op.nn.relu(value)) if self.relu else value
        value = emit(op.add(emit(op.round(value)), relax.const(float(self.zero), "float32")))
        return op.astype(emit(op.clip(value, float(info.min), float(info.max))), self.dtype)

    def expected(self, total: Array) -> Array:
        info = np.iinfo(self.dtype)
        value = (total - self.corrections).astype("float32") * self.scales
        value = np.maximum(value, 0) if self.relu else value
        return np.clip(np.rint(value) + self.zero, info.min, info.max).astype(self.dtype)


def extremes(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> Array:
    """Random values, of which half are the largest and the smallest: sums of 16 bits would overflow."""
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max + 1, shape)
    ends = rng.choice([info.min, info.max], shape)
    return np.where(rng.random(shape) < 0.5, ends, values).astype(dtype)


def convolved(x: Array, w: Array, pads: Sequence[int], fill: int, strides: Any, dilation: Any, groups: int) -> Array:
    """A convolution of (n, c, h, w) in int64."""
    top, left, bottom, right = pads
    x = np.pad(x.astype("int64"), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    n, _, height, width = x.shape
    out, per_group, kh, kw = w.shape
    oh = (height - (kh - 1) * dilation[0] - 1) // strides[0] + 1
    ow = (width - (kw - 1) * dilation[1] - 1) // strides[1] + 1
    result = np.zeros((n, groups, out // groups, oh, ow), "int64")
    filters = w.astype("int64").reshape(groups, out // groups, per_group, kh, kw)
    for y in range(kh):
        for z in range(kw):
            rows = slice(y * dilation[0], y * dilation[0] + (oh - 1) * strides[0] + 1, strides[0])
            columns = slice(z * dilation[1], z * dilation[1] + (ow - 1) * strides[1] + 1, strides[1])
            part = x[:, :, rows, columns].reshape(n, groups, per_group, oh, ow)
            result += np.einsum("ngihw,goi->ngohw", part, filters[..., y, z])
    return result.reshape(n, out, oh, ow)
