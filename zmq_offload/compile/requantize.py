"""Shorten what comes after int32 sums, and write `quantize` and `dequantize` as arithmetic.

Scales, biases and limits between the sums and a `quantize` become one multiplication, one addition and one range:
round(sums * scale + bias) + zero point, clipped. A quotient becomes a product, so that a result in the middle of two
integers may be rounded to the other one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Call, Expr, Var
from tvm.relax.expr_functor import mutator

from zmq_offload.compile.blocks import BlockRewriter, rewrite
from zmq_offload.protocol.payload import Array
from zmq_offload.schedules.tvm_internals import operator_name

op = relax.op
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}

STEPS = {f"relax.{name}" for name in ("multiply", "divide", "add", "subtract", "maximum", "minimum")}


def requantize(mod: tvm.IRModule) -> tvm.IRModule:
    """Join the steps between int32 sums and `quantize`."""
    return rewrite(mod, _Requantize)


def lower(mod: tvm.IRModule) -> tvm.IRModule:
    """Write `quantize` and `dequantize` as arithmetic."""
    return rewrite(mod, _Lower)


@dataclass
class _Affine:
    """min(max(sums * scale + bias, lowest), highest)."""

    scale: Array = field(default_factory=lambda: np.ones(()))
    bias: Array = field(default_factory=lambda: np.zeros(()))
    lowest: Array = field(default_factory=lambda: np.full((), -np.inf))
    highest: Array = field(default_factory=lambda: np.full((), np.inf))

    def times(self, factor: Array) -> None:
        self.scale, self.bias = self.scale * factor, self.bias * factor
        self.lowest, self.highest = self.lowest * factor, self.highest * factor

    def plus(self, term: Array) -> None:
        self.bias, self.lowest, self.highest = self.bias + term, self.lowest + term, self.highest + term

    def limit(self, lowest: Any, highest: Any) -> None:
        self.lowest, self.highest = (np.clip(end, lowest, highest) for end in (self.lowest, self.highest))


@mutator
class _Requantize(BlockRewriter):
    def visit_call_(self, call: Call) -> Expr:
        if operator_name(call) == "relax.quantize":
            scale, zero = (self.constant(a) for a in call.args[1:3])
            if scale is not None and zero is not None and not scale.ndim and not zero.ndim:
                found = self._after_sums(call.args[0])
                if found is not None:
                    return self._requantized(*found, scale, int(zero), str(call.ty.dtype))
        return self.operands(call)

    def _after_sums(self, expr: Expr) -> tuple[Expr, _Affine] | None:
        """The int32 sums from which a tensor is computed, and how; None if otherwise."""
        call = self.original(expr)
        if not isinstance(expr, Var) or self.uses[expr] != 1 or not isinstance(call, Call):
            return None
        name = operator_name(call)
        if name == "relax.astype":
            return (call.args[0], _Affine()) if str(call.args[0].ty.dtype) == "int32" else None
        if name == "relax.nn.relu":
            found = self._after_sums(call.args[0])
            if found is not None:
                found[1].limit(0, np.inf)
            return found
        if name not in (
            "relax.multiply",
            "relax.divide",
            "relax.add",
            "relax.subtract",
            "relax.maximum",
            "relax.minimum",
        ):
            return None
        x, array = call.args[0], self.constant(call.args[1])
        if array is None and name not in ("relax.divide", "relax.subtract"):
            x, array = call.args[1], self.constant(call.args[0])
        if array is None or len(x.ty.shape) != call.ty.ndim or (array.size > 1 and not _same_shape(x, call)):
            return None
        found = self._after_sums(x)
        return found if found is not None and _follow(found[1], name, array.astype(np.float64)) else None

    def _requantized(self, sums: Expr, affine: _Affine, scale: Array, zero: int, kind: str) -> Expr:
        emit = self.builder_.emit
        affine.times(1 / scale.astype(np.float64))
        lowest, highest = (
            _scalar(np.clip(np.rint(np.clip(end, -1e9, 1e9)) + zero, *LIMITS[kind]))
            for end in (affine.lowest, affine.highest)
        )
        whole = _whole(affine)
        value = self._moved(sums, whole)
        value = emit(op.multiply(emit(op.astype(value, "float32")), relax.const(affine.scale.astype(np.float32))))
        if whole is None and affine.bias.any():
            value = emit(op.add(value, relax.const(affine.bias.astype(np.float32))))
        value = emit(op.round(value))
        if zero:
            value = emit(op.add(value, relax.const(np.float32(zero))))
        if not lowest.ndim and not highest.ndim:
            value = emit(op.clip(value, float(lowest), float(highest)))
        else:
            value = emit(op.maximum(value, relax.const(lowest.astype(np.float32))))
            value = emit(op.minimum(value, relax.const(highest.astype(np.float32))))
        return op.astype(value, kind)

    def _moved(self, sums: Expr, by: Array | None) -> Expr:
        """Sums plus a constant, which joins what their zero points add."""
        call = self.original(sums)
        correction = self.constant(call.args[1]) if operator_name(call) == "relax.subtract" else None
        if by is None or correction is None:
            value = self.visit_expr(sums)
            return value if by is None else self.emit(op.add(value, relax.const(by)))
        return self.emit(op.subtract(self.visit_expr(call.args[0]), relax.const(correction - by)))


def _scalar(array: Array) -> Array:
    """One number, if all are the same."""
    return array.reshape(-1)[0] if array.size and (array == array.reshape(-1)[0]).all() else array


def _same_shape(x: Expr, call: Call) -> bool:
    """Whether an operand of several elements leaves the shape of `x` as it is."""
    return bool(tvm_ffi.structural_equal(x.ty.shape, call.ty.shape))


def _follow(affine: _Affine, name: str, array: Array) -> bool:
    """Add a step; False if it cannot be one of an affine function with limits."""
    array = array.reshape(()) if array.size == 1 else array
    if name in ("relax.multiply", "relax.divide"):
        if not np.isfinite(array).all() or not (array > 0).all():
            return False
        affine.times(array if name == "relax.multiply" else 1 / array)
    elif name in ("relax.add", "relax.subtract"):
        if not np.isfinite(array).all():
            return False
        affine.plus(array if name == "relax.add" else -array)
    elif np.isnan(array).any():
        return False
    elif name == "relax.maximum":
        affine.limit(array, np.inf)
    else:
        affine.limit(-np.inf, array)
    return True


def _whole(affine: _Affine) -> Array | None:
    """The bias in units of the sums, if it is a whole number, as a quantized bias is."""
    if not affine.bias.any():
        return None
    units = affine.bias / affine.scale
    nearest = np.rint(units)
    near = np.abs(units - nearest) <= np.minimum(1e-3 + 1e-6 * np.abs(units), 0.25)
    return nearest.astype(np.int32) if near.all() and np.abs(units).max() < 2**30 else None


@mutator
class _Lower(BlockRewriter):
    def visit_call_(self, call: Call) -> Expr:
        name = operator_name(call)
        if name not in ("relax.quantize", "relax.dequantize"):
            return self.operands(call)
        emit, kind = self.builder_.emit, str(call.ty.dtype)
        scale, zero = (self._along(a, int(call.attrs.axis), call.ty.ndim) for a in call.args[1:3])
        if scale is None or zero is None or kind not in (*LIMITS, "float32"):
            return self.operands(call)
        if name == "relax.dequantize":
            return self._real(call, scale, zero)
        scaled = emit(op.round(emit(op.divide(self.visit_expr(call.args[0]), relax.const(scale)))))
        if zero.any():
            scaled = emit(op.add(scaled, relax.const(zero.astype(np.float32))))
        return op.astype(emit(op.clip(scaled, *map(float, LIMITS[kind]))), kind)

    def _real(self, call: Call, scale: Array, zero: Array) -> Expr:
        emit = self.builder_.emit
        value = self.visit_expr(call.args[0])
        if zero.any() and str(value.ty.dtype) == "int32":
            value = emit(op.subtract(value, relax.const(zero.astype(np.int32))))
            zero = np.zeros(())
        value = emit(op.astype(value, "float32"))
        if zero.any():
            value = emit(op.subtract(value, relax.const(zero.astype(np.float32))))
        return op.multiply(value, relax.const(scale))

    def _along(self, expr: Expr, axis: int, rank: int) -> Array | None:
        """A constant that broadcasts along an axis."""
        array = self.constant(expr)
        if array is None or array.size == 1 or not rank:
            return array if array is None else array.reshape(())
        return array.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
