"""Shorten what is between integers and `quantize`, and write `quantize` and `dequantize` as arithmetic.

Scales, biases and limits between int32 sums, or bytes, and a `quantize` become one multiplication, one addition and one
range: round(sums * scale + bias) + zero point, clipped. The sum of two such tensors becomes round(a * x + b * y + c). A
quotient becomes a product, so that a result in the middle of two integers may be rounded to the other one.
"""

from __future__ import annotations

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Call, Expr, Var
from tvm.relax.expr_functor import mutator

from zmq_offload.compile.quantization.affine import STEPS, Affine, Found, Two
from zmq_offload.compile.quantization.blocks import BlockRewriter, rewrite
from zmq_offload.compile.quantization.integers import BYTES
from zmq_offload.protocol.payload import Array
from zmq_offload.schedules.tvm_internals import operator_name

op = relax.op
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def requantize(mod: tvm.IRModule) -> tvm.IRModule:
    """Join the steps between int32 sums and `quantize`."""
    return rewrite(mod, _Requantize)


def lower(mod: tvm.IRModule) -> tvm.IRModule:
    """Write `quantize` and `dequantize` as arithmetic."""
    return rewrite(mod, _Lower)


@mutator
class _Requantize(BlockRewriter):
    def visit_call_(self, call: Call) -> Expr:
        if operator_name(call) == "relax.quantize":
            scale, zero = (self.constant(a) for a in call.args[1:3])
            if scale is not None and zero is not None and not scale.ndim and not zero.ndim:
                found = self._after_sums(call.args[0])
                if found is not None:
                    return self._requantized(found, scale, int(zero), str(call.ty.dtype))
        return self.operands(call)

    def _after_sums(self, expr: Expr) -> Found | None:
        """The integers from which a tensor is computed, and how; None if otherwise."""
        call = self.original(expr)
        name = operator_name(call)
        if name == "relax.dequantize":
            return self._dequantized(call)
        if not isinstance(expr, Var) or self.uses[expr] != 1 or not isinstance(call, Call):
            return None
        if name == "relax.astype":
            return Found(call.args[0], Affine()) if str(call.args[0].ty.dtype) == "int32" else None
        if name == "relax.nn.relu":
            found = self._after_sums(call.args[0])
            if found is not None:
                found.affine.limit(0, np.inf)
            return found
        if name not in STEPS:
            return None
        x, array = call.args[0], self.constant(call.args[1])
        if array is None and name not in ("relax.divide", "relax.subtract"):
            x, array = call.args[1], self.constant(call.args[0])
        if array is None:
            return self._of_two(name, call)
        if len(x.ty.shape) != call.ty.ndim or (array.size > 1 and not _same_shape(x, call)):
            return None
        found = self._after_sums(x)
        return found if found is not None and found.affine.follow(name, array.astype(np.float64)) else None

    def _dequantized(self, call: Call) -> Found | None:
        scale, zero = (self.constant(a) for a in call.args[1:3])
        if scale is None or zero is None or scale.size != 1 or zero.size != 1:
            return None
        if str(call.args[0].ty.dtype) not in BYTES or self.constant(call.args[0]) is not None:
            return None
        affine = Affine()
        affine.plus(-zero.reshape(()).astype(np.float64))
        affine.times(scale.reshape(()).astype(np.float64))
        return Found(call.args[0], affine)

    def _of_two(self, name: str, call: Call) -> Found | None:
        if name not in ("relax.add", "relax.subtract", "relax.multiply") or str(call.ty.dtype) != "float32":
            return None
        left, right = (self._after_sums(a) for a in call.args)
        if left is None or right is None or left.affine.limited or right.affine.limited:
            return None
        if name == "relax.multiply" and any(isinstance(f.of, Two) or f.affine.scale.size > 1 for f in (left, right)):
            return None
        if name == "relax.subtract":
            right = Found(right.of, Affine(-right.affine.scale, -right.affine.bias))
        return Found(Two(left, right, name == "relax.multiply"), Affine())

    def _requantized(self, found: Found, scale: Array, zero: int, kind: str) -> Expr:
        emit, affine = self.builder_.emit, found.affine
        affine.times(1 / scale.astype(np.float64))
        lowest, highest = (
            _scalar(np.clip(np.rint(np.clip(end, -1e9, 1e9)) + zero, *LIMITS[kind]))
            for end in (affine.lowest, affine.highest)
        )
        value = self._scaled(found)
        value = emit(op.round(value))
        if zero:
            value = emit(op.add(value, relax.const(np.float32(zero))))
        if not lowest.ndim and not highest.ndim:
            value = emit(op.clip(value, float(lowest), float(highest)))
        else:
            value = emit(op.maximum(value, relax.const(lowest.astype(np.float32))))
            value = emit(op.minimum(value, relax.const(highest.astype(np.float32))))
        return op.astype(value, kind)

    def _scaled(self, found: Found) -> Expr:
        """A function of integers as float32, without its limits."""
        emit, affine = self.builder_.emit, found.affine
        if not isinstance(found.of, Two) and str(found.of.ty.dtype) == "int32":
            whole = affine.whole_bias()
            value = emit(op.astype(self._moved(found.of, whole), "float32"))
            value = emit(op.multiply(value, relax.const(affine.scale.astype(np.float32))))
            return value if whole is not None or not affine.bias.any() else self._plus(value, affine.bias)
        total: Expr | None = None
        for of, factor in found.terms(np.ones(())):
            value = self._product(of) if isinstance(of, Two) else emit(op.astype(self.visit_expr(of), "float32"))
            value = emit(op.multiply(value, relax.const(factor.astype(np.float32))))
            total = value if total is None else emit(op.add(total, value))
        bias = found.offset(np.ones(()))
        return self._plus(total, bias) if bias.any() else total

    def _plus(self, value: Expr, bias: Array) -> Expr:
        return self.builder_.emit(op.add(value, relax.const(bias.astype(np.float32))))

    def _product(self, two: Two) -> Expr:
        """(x - x's zero point) * (y - y's zero point), and the scales."""
        emit = self.builder_.emit
        parts = []
        for part in (two.left, two.right):
            value = emit(op.astype(self.visit_expr(part.of), "float32"))
            offset = part.affine.bias / part.affine.scale
            parts.append(self._plus(value, offset) if offset.any() else value)
        scale = two.left.affine.scale * two.right.affine.scale
        return emit(op.multiply(emit(op.multiply(*parts)), relax.const(scale.astype(np.float32))))

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
