"""Compute functions of one quantized tensor by a table of 256 bytes.

Between `dequantize` and `quantize`, a chain such as Sigmoid, HardSwish or GELU is a function of one byte, also if it
quantizes what is between its steps, and reads a tensor several times. Its values are computed here, in float64, and the
model looks them up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tvm import relax
from tvm.ir import Call, Expr, Var
from tvm.relax.expr_functor import mutator

from zmq_offload.compile.quantization.blocks import BlockRewriter
from zmq_offload.compile.quantization.integers import BYTES
from zmq_offload.protocol.payload import Array
from zmq_offload.schedules.tvm_internals import operator_name

op = relax.op
_Function: TypeAlias = Callable[..., Array]


def _erf(x: Array) -> Array:
    return np.asarray([math.erf(v) for v in x.reshape(-1)]).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x))


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


_STEPS: dict[str, _Function] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
    "relax.negative": np.negative,
    "relax.abs": np.abs,
    "relax.square": np.square,
    "relax.nn.relu": lambda x: np.maximum(x, 0),
}
"""Steps that vector code computes as fast as a table, if there are few."""

_FUNCTIONS: dict[str, _Function] = {
    "relax.cos": np.cos,
    "relax.erf": _erf,
    "relax.equal": np.equal,
    "relax.exp": np.exp,
    "relax.floor": np.floor,
    "relax.ceil": np.ceil,
    "relax.greater": np.greater,
    "relax.greater_equal": np.greater_equal,
    "relax.less": np.less,
    "relax.less_equal": np.less_equal,
    "relax.log": np.log,
    "relax.nn.gelu": _gelu,
    "relax.nn.gelu_tanh": _gelu_tanh,
    "relax.nn.silu": lambda x: x * _sigmoid(x),
    "relax.power": np.power,
    "relax.round": np.rint,
    "relax.rsqrt": lambda x: 1 / np.sqrt(x),
    "relax.sigmoid": _sigmoid,
    "relax.sin": np.sin,
    "relax.sqrt": np.sqrt,
    "relax.tanh": np.tanh,
    "relax.where": np.where,
}


@dataclass(frozen=True)
class _Values:
    """One value for each of the 256 bytes of `source`, or one number if that is None.

    `worth` tells whether a table pays.
    """

    source: Var | None
    values: Array
    worth: bool = False


@mutator
class Tables(BlockRewriter):
    """Replaces each `quantize` of a function of one quantized tensor, except of a short chain of `_STEPS`."""

    def enter(self, block: relax.BindingBlock) -> None:
        super().enter(block)
        self._known: dict[Var, _Values | None] = {}

    def visit_call_(self, call: Call) -> Expr:
        if operator_name(call) == "relax.quantize":
            found = self._values_of(call)
            if found is not None and found.source is not None and found.worth:
                source = self.visit_expr(found.source)
                if str(source.ty.dtype) == "int8":  # the same bits
                    source = self.emit(op.astype(source, "uint8"))
                return op.take(relax.const(found.values.astype(str(call.ty.dtype))), source, axis=0, mode="clip")
        return self.operands(call)

    def _values_of(self, expr: Expr) -> _Values | None:
        """The values of a float tensor, or of a quantized one, for each byte of the tensor that it depends on."""
        if not isinstance(expr, Var):
            return self._compute(expr)
        if expr not in self._known:
            self._known[expr] = self._compute(self.original(expr))
        return self._known[expr]

    def _compute(self, value: Expr) -> _Values | None:
        array = self.constant(value)
        if array is not None:
            return _Values(None, array.reshape(()).astype("f8")) if array.size == 1 else None
        name = operator_name(value)
        if name == "relax.dequantize":
            return self._dequantized(value)
        if name not in (*_STEPS, *_FUNCTIONS, "relax.clip", "relax.nn.leakyrelu", "relax.quantize"):
            return None
        if name == "relax.quantize":
            return self._quantized(value)
        if str(value.ty.dtype) not in ("float32", "bool"):
            return None
        tensors = value.args[:1] if name == "relax.clip" else value.args
        operands = [self._values_of(a) for a in tensors]
        sources = [o.source for o in operands if o is not None and o.source is not None]
        if None in operands or not sources or any(not s.same_as(sources[0]) for s in sources):
            return None
        known = [o for o in operands if o is not None]
        with np.errstate(all="ignore"):
            values = _function(value)(*(o.values for o in known))
        long = len(sources) > 1 or name not in _STEPS
        return _Values(sources[0], values, long or any(o.worth for o in known))

    def _dequantized(self, call: Call) -> _Values | None:
        scale, zero = (self.constant(a) for a in call.args[1:3])
        if (
            scale is None
            or zero is None
            or scale.size != 1
            or zero.size != 1
            or self.constant(call.args[0]) is not None
        ):
            return None
        inner = self._values_of(call.args[0])
        if inner is None:
            kind = str(call.args[0].ty.dtype)
            if kind not in BYTES or not isinstance(call.args[0], Var):
                return None
            inner = _Values(call.args[0], np.arange(256).astype("uint8").view(kind).astype("f8"), False)
        return _Values(inner.source, (inner.values - float(zero.item())) * float(scale.item()), inner.worth)

    def _quantized(self, call: Call) -> _Values | None:
        x, kind = self._values_of(call.args[0]), str(call.ty.dtype)
        scale, zero = (self.constant(a) for a in call.args[1:3])
        if x is None or x.source is None or kind not in BYTES or scale is None or zero is None:
            return None
        if scale.size != 1 or zero.size != 1 or np.isnan(x.values).any():
            return None
        limits = np.iinfo(kind)
        rounded = np.rint(x.values / float(scale.item())) + float(zero.item())
        return _Values(x.source, np.clip(rounded, limits.min, limits.max), x.worth)


def _function(call: Call) -> _Function:
    name, attributes = operator_name(call), call.attrs
    if name == "relax.clip":
        lowest, highest = (float(a.value) for a in call.args[1:3])
        return lambda x: np.clip(x, lowest, highest)
    if name == "relax.nn.leakyrelu":
        alpha = float(attributes.alpha)
        return lambda x: np.where(x < 0, x * alpha, x)
    return _STEPS.get(name) or _FUNCTIONS[name]
