"""Values as vector code: transcendental functions become arithmetic, NaN stays NaN, integer divisions do not trap."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.ir import Call, Expr, TensorLoad

from zmq_offload.schedules.functions import hyperbolic, inverse_trigonometry, powers, transcendental, trigonometry
from zmq_offload.schedules.functions.transcendental import let
from zmq_offload.schedules.rewrite import Rewriter, loads, walk
from zmq_offload.schedules.tvm_internals import CALL_PURE_EXTERN, last_part, operator_name


def _exp(x: Expr) -> Expr:
    return transcendental.exp_of_nonpositive(x) if transcendental.is_nonpositive(x) else transcendental.exp(x)


_RULES: dict[str, Callable[..., Expr]] = {
    "exp": _exp,
    "sigmoid": transcendental.sigmoid,
    "tanh": transcendental.tanh,
    "erf": transcendental.erf,
    "log": transcendental.log,
    "log1p": transcendental.log1p,
    "sin": trigonometry.sin,
    "cos": trigonometry.cos,
    "tan": trigonometry.tan,
    "asin": inverse_trigonometry.asin,
    "acos": inverse_trigonometry.acos,
    "atan": inverse_trigonometry.atan,
    "sinh": hyperbolic.sinh,
    "cosh": hyperbolic.cosh,
    "asinh": hyperbolic.asinh,
    "acosh": hyperbolic.acosh,
    "atanh": hyperbolic.atanh,
    "pow": powers.power,
}
# TVM has no code for these, or its formulas cancel; every C library has them.
_FROM_LIBM = ("tanh", "sinh", "cosh", "asinh", "acosh", "atanh")
_FLOATS = ("float16", "float32", "float64")


def extremum(kind: type, a: Expr, b: Expr) -> Expr:
    """Return the larger or smaller of two numbers (`kind` is tirx.Max or tirx.Min), NaN if either is NaN.

    TVM's own is `a > b ? a : b`, one instruction on x86. It gives `b` if either is NaN, which is right if `a` is a
    literal.
    """
    dtype = str(a.ty)
    if dtype not in _FLOATS:
        return kind(a, b)
    for literal, other in ((a, b), (b, a)):
        if isinstance(literal, tirx.FloatImm) and not math.isnan(float(literal.value)):
            return kind(literal, other)
    first = a if isinstance(a, tirx.Var | TensorLoad) else tirx.Var("m", dtype)
    value = tirx.Select(first <= tirx.FloatImm(dtype, float("inf")), kind(first, b), first)
    return value if first is a else tirx.Let(first, a, value)


def _quotient(kind: type, a: Expr, b: Expr) -> Expr:
    """Return an integer quotient or remainder that does not trap: x / 0 is 0, as in NumPy; -2^63 / -1 wraps around."""
    dtype = str(b.ty)
    signed = dtype.startswith("int")
    x, y = tirx.Var("x", dtype), tirx.Var("y", dtype)
    zero, one = (tirx.IntImm(dtype, i) for i in (0, 1))
    odd = tirx.EQ(y, zero)
    # A factor after the division: TVM's simplifier would remove the guard of a divisor inside a condition on y.
    factor = tirx.Select(odd, zero, one)
    if signed:
        by_minus_one = tirx.EQ(y, tirx.IntImm(dtype, -1))
        quotient = kind in (tirx.Div, tirx.FloorDiv)
        factor = tirx.Select(by_minus_one, tirx.IntImm(dtype, -1) if quotient else zero, factor)
        odd = tirx.Or(odd, by_minus_one)
    return let([(x, a), (y, b)], kind(x, tirx.Select(odd, one, y)) * factor)


def _name(call: Call) -> str:
    return last_part(operator_name(call))


class Safe(Rewriter):
    """Keeps NaN in maxima and minima, guards integer divisions, and calls the C library for functions TVM lacks."""

    def __init__(self) -> None:
        super().__init__({})
        self._named: set[tirx.Var] = set()

    def visit(self, e: Expr) -> Expr:
        """`e` rewritten."""
        if isinstance(e, tirx.Max | tirx.Min):
            return extremum(type(e), self.visit(e.a), self.visit(e.b))
        if isinstance(e, tirx.Let):
            self._named.add(e.var)
        if isinstance(e, tirx.Div | tirx.Mod | tirx.FloorDiv | tirx.FloorMod) and self._is_data(e.b):
            return _quotient(type(e), self.visit(e.a), self.visit(e.b))
        return super().visit(e)

    def call(self, call: Call, args: list[Expr]) -> Expr:
        name, dtype = _name(call), str(call.ty)
        if name in _FROM_LIBM and dtype in ("float16", "float32"):
            value = tirx.call_pure_extern("float32", f"{name}f", *(tirx.Cast("float32", a) for a in args))
            return value if dtype == "float32" else tirx.Cast(dtype, value)
        return super().call(call, args)

    def _is_data(self, divisor: Expr) -> bool:
        """Return whether a divisor is an integer of a tensor, not an index or an extent."""
        if str(divisor.ty) in _FLOATS or isinstance(divisor, tirx.IntImm):
            return False
        return any(isinstance(e, TensorLoad) or (isinstance(e, tirx.Var) and e in self._named) for e in walk(divisor))


# Expressions through which one more rounding stays one rounding, in the argument of a smooth function.
_SMOOTH = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min, tirx.Var, tirx.FloatImm, TensorLoad, Call)


class _Vectorizable(Safe):
    """Also writes functions as arithmetic, and divisions by literals as multiplications where this is as accurate."""

    def __init__(self, scales: bool) -> None:
        super().__init__()
        self._scales = scales
        self._in_smooth = False

    def call(self, call: Call, args: list[Expr]) -> Expr:
        name = _name(call)
        if name == CALL_PURE_EXTERN and str(args[0].value) == "expm1f":
            return transcendental.expm1(args[1])
        dtype = str(call.ty)
        if name == "exp" and dtype == "float32" and self._scales:
            return transcendental.exp_by_scaling(*args)
        if name in _RULES and dtype == "float32":
            return _RULES[name](*args)
        if name in _RULES and dtype == "float16":
            # Intermediate results may exceed the range of float16; e^12 does.
            return tirx.Cast(dtype, _RULES[name](*(tirx.Cast("float32", a) for a in args)))
        return super().call(call, args)

    def visit(self, e: Expr) -> Expr:
        # A division costs ten times a multiplication by the reciprocal, which adds one rounding. In the argument of a
        # function such as erf this is harmless. Elsewhere it shows: 41 * (1/41) is below 1, so Floor would give 0.
        if isinstance(e, tirx.Div) and isinstance(e.b, tirx.FloatImm) and str(e.ty) == "float32":
            divisor = float(e.b.value)
            if 1e-30 < abs(divisor) < 1e30 and (self._in_smooth or abs(math.frexp(divisor)[0]) == 0.5):
                return self.visit(e.a) * tirx.FloatImm("float32", 1.0 / divisor)
        if self._in_smooth and not isinstance(e, _SMOOTH):
            return self._with(False, e)
        return super().visit(e)

    def _call(self, e: Call) -> Expr:
        before, self._in_smooth = self._in_smooth, _name(e) in _RULES
        try:
            return super()._call(e)
        finally:
            self._in_smooth = before

    def _with(self, smooth: bool, e: Expr) -> Expr:
        before, self._in_smooth = self._in_smooth, smooth
        try:
            return self.visit(e)
        finally:
            self._in_smooth = before


def vectorizable(value: Expr, scales: bool = False) -> Expr:
    """Return `value` with transcendental functions as arithmetic, and with the rewrites of `Safe`.

    `scales` tells whether the CPU scales by a power of two in one instruction.
    """
    return _Vectorizable(scales).visit(value)


def is_cheap(value: Expr) -> bool:
    """Return whether computing `value` again costs no more than loading it: no call, no division, at most one load."""
    return len(loads(value)) <= 1 and not any(isinstance(e, Call | tirx.Div) for e in walk(value))
