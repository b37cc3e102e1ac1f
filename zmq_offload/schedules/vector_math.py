"""Transcendental functions as arithmetic that vectorizes. (LLVM calls the C library for each lane, or has no code.)

docs/numbers.md has the error of each; tests measure it. NaN stays NaN without isnan: on AVX2, a `Select` on isnan
becomes a branch for each lane. Comparisons with NaN are false, and each formula then picks the operand that is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Call, Expr, TensorLoad

from zmq_offload.schedules.rewrite import Rewriter, loads, walk
from zmq_offload.schedules.tvm_internals import CALL_PURE_EXTERN, last_part, operator_name

_INF = float("inf")
_LN2 = 0.6931471805599453
# ln 2 in two parts, the first with trailing zeros, so that n * LN2_HIGH is exact (Cody and Waite).
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.42860677e-06
_LOG2_E = 1.4426950408889634
# exp(x) rounds to 0 below the first, and is a denormal from there to -87.3, as in NumPy and ONNX Runtime. It underflows
# at the second, overflows at the third, and adding it to 1 changes nothing below the last.
_EXP_MIN, _EXP_UNDER, _EXP_OVER, _EXP_NONE = -103.97207641601562, -104.5, 89.0, -40.0
# Taylor series of exp for |r| <= ln(2)/2; the first omitted term, r^8/8!, is below 6e-9.
_EXP_TERMS = tuple(1.0 / f for f in (5040, 720, 120, 24, 6, 2, 1, 1))
# Adding 1.5 * 2^23 rounds and leaves an integer in the low bits of the significand, without a conversion to int32,
# which is undefined for NaN.
_ROUND, _ROUND_BITS = 12582912.0, 0x4B400000


def _f(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def _i(value: int) -> Expr:
    return tirx.IntImm("int32", value)


def _var(name: str, dtype: str = "float32") -> tirx.Var:
    return tirx.Var(name, dtype)


def _horner(x: Expr, terms: Sequence[float]) -> Expr:
    total = _f(terms[0])
    for term in terms[1:]:
        total = total * x + _f(term)
    return total


def _let(bindings: Sequence[tuple[tirx.Var, Expr]], body: Expr) -> Expr:
    for var, value in reversed(bindings):
        body = tirx.Let(var, value, body)
    return body


def _power_of_two(n: Expr) -> Expr:
    return tirx.reinterpret("float32", tirx.Mul(n + _i(127), _i(1 << 23)))


def _bits(x: Expr) -> Expr:
    return tirx.reinterpret("int32", x)


def _magnitude(x: Expr) -> Expr:
    return tirx.abs(x)


def _reduced_exp(c: Expr, minus_one: bool = False) -> Expr:
    """e^c, or e^c - 1, for |c| < 105: c = n ln 2 + r, a polynomial for e^r, and 2^n as two factors that do not
    overflow."""
    v, t, n, r = (_var(name) for name in "ctnr")
    whole, half, rest = (_var(name, "int32") for name in "khl")
    if minus_one:
        # 2^n (e^r - 1) + 2^n - 1: nothing cancels, since n is 0 if e^c is near 1.
        less = r * _horner(r, _EXP_TERMS[:-1])
        scaled = less * _power_of_two(half) + (_power_of_two(half) - _power_of_two(_i(0) - rest))
    else:
        scaled = _horner(r, _EXP_TERMS) * _power_of_two(half)
    return _let(
        [
            (v, c),
            (t, v * _f(_LOG2_E) + _f(_ROUND)),
            (n, t - _f(_ROUND)),
            (whole, _bits(t) - _i(_ROUND_BITS)),
            (half, tirx.RShift(whole, _i(1))),
            (rest, whole - half),
            (r, (v - n * _f(_LN2_HIGH)) - n * _f(_LN2_LOW)),
        ],
        scaled * _power_of_two(rest),
    )


def exp(x: Expr) -> Expr:
    """e^x. If the result rounds to 0, e^0 is computed first: denormals cost some CPUs a hundred cycles."""
    v = _var("x")
    value = _reduced_exp(tirx.Min(_f(_EXP_OVER), tirx.Select(v < _f(_EXP_MIN), _f(0.0), v)))
    return _let([(v, x)], tirx.Select(v < _f(_EXP_MIN), _f(0.0), value))


def _exp_of_negative(x: Expr, least: float) -> Expr:
    """e^x for x <= 0 or NaN, but at least e^least."""
    return _reduced_exp(tirx.Max(_f(least), x))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x), or e^x / (1 + e^x) for negative x: neither overflows, and both keep all bits of e^-|x|."""
    v, e = _var("x"), _var("e")
    power = _exp_of_negative(_f(0.0) - _magnitude(v), _EXP_UNDER)
    return _let([(v, x), (e, power)], tirx.Div(tirx.Select(v < _f(0.0), e, _f(1.0)), _f(1.0) + e))


# tanh x = x - x^3/3 + ... near 0, where (1 - e^-2x)/(1 + e^-2x) would cancel. Below the bound, the first omitted term
# is under 1e-8 relative.
_TANH_SMALL = 0.25
_TANH_TERMS = (-1382.0 / 155925.0, 62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0)


def tanh(x: Expr) -> Expr:
    """tanh x: a Taylor series near 0, else from e^(-2|x|), which cannot overflow."""
    v, s, a, e = (_var(name) for name in "xsae")
    large = tirx.Div(_f(1.0) - e, _f(1.0) + e)
    signed = tirx.Select(v < _f(0.0), _f(0.0) - large, large)
    value = tirx.Select(a < _f(_TANH_SMALL), v * _horner(s, _TANH_TERMS), signed)
    return _let([(v, x), (s, v * v), (a, _magnitude(v)), (e, _exp_of_negative(_f(-2.0) * a, _EXP_NONE))], value)


# erf x = x P(x^2) for |x| < 1 (Maclaurin to x^19, next term below 2e-8), else
# 1 - e^(-x^2) t Q(t), t = 1/(1 + 0.3275911 |x|): Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
_ERF_TERMS = tuple(
    1.1283791670955126 * t
    for t in (
        *(-1.0 / 6894720.0, 1.0 / 685440.0, -1.0 / 75600.0, 1.0 / 9360.0, -1.0 / 1320.0),
        *(1.0 / 216.0, -1.0 / 42.0, 1.0 / 10.0, -1.0 / 3.0, 1.0),
    )
)
_ERFC_TERMS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def erf(x: Expr) -> Expr:
    """The error function: a series near 0, 1 - erfc elsewhere."""
    v, s, a, t = (_var(name) for name in "xsat")
    large = _f(1.0) - _exp_of_negative(_f(0.0) - s, _EXP_NONE) * t * _horner(t, _ERFC_TERMS)
    signed = tirx.Select(v < _f(0.0), _f(0.0) - large, large)
    value = tirx.Select(a < _f(1.0), v * _horner(s, _ERF_TERMS), signed)
    fraction = tirx.Div(_f(1.0), _f(1.0) + _f(0.3275911) * a)
    return _let([(v, x), (s, v * v), (a, _magnitude(v)), (t, fraction)], value)


def expm1(x: Expr) -> Expr:
    """e^x - 1."""
    return _reduced_exp(tirx.Min(_f(_EXP_OVER), tirx.Max(_f(_EXP_NONE), x)), minus_one=True)


# The significand is in [sqrt(1/2), sqrt(2)); log(1 + f) = 2 atanh(s), s = f/(2 + f): 2s (1 + z/3 + z^2/5 + ...) with
# z = s^2 < 0.0295, so that the first omitted term, z^5/11, is below 3e-9.
_SQRT_HALF_BITS = 0x3F3504F3
_ATANH_TERMS = (2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0)
_LEAST_NORMAL = 1.1754943508222875e-38


def _log_of_positive(x: Expr) -> Expr:
    """The logarithm of a finite number above 0, also of denormals."""
    v, u, f, s, z, k, h = (_var(name) for name in "xufszkh")
    bits = _var("b", "int32")
    tiny = v < _f(_LEAST_NORMAL)
    exponent = tirx.Cast("float32", tirx.RShift(bits, _i(23)))
    significand = tirx.reinterpret("float32", tirx.BitwiseAnd(bits, _i(0x7FFFFF)) + _i(_SQRT_HALF_BITS))
    return _let(
        [
            (v, x),
            (u, tirx.Select(tiny, v * _f(2.0**25), v)),
            (bits, _bits(u) - _i(_SQRT_HALF_BITS)),
            (k, exponent - tirx.Select(tiny, _f(25.0), _f(0.0))),
            (f, significand - _f(1.0)),
            (s, tirx.Div(f, _f(2.0) + f)),
            (z, s * s),
            (h, _f(0.5) * f * f),
        ],
        k * _f(_LN2_HIGH) + (f - (h - (s * (h + z * _horner(z, _ATANH_TERMS)) + k * _f(_LN2_LOW)))),
    )


def _logarithm(v: Expr, u: Expr, positive: Expr) -> Expr:
    """`positive` for u > 0 and finite `v`; -inf for u = 0, NaN for u < 0, and `v` if that is infinite or NaN."""
    below = tirx.Select(tirx.EQ(u, _f(0.0)), _f(-_INF), _f(float("nan")))
    return tirx.Select(v < _f(_INF), tirx.Select(u > _f(0.0), positive, below), v)


def log(x: Expr) -> Expr:
    """The natural logarithm."""
    v = _var("x")
    return _let([(v, x)], _logarithm(v, v, _log_of_positive(v)))


def log1p(x: Expr) -> Expr:
    """log(1 + x), with the digits that 1 + x loses added."""
    v, u = _var("x"), _var("u")
    positive = _log_of_positive(u) + tirx.Div(v - (u - _f(1.0)), u)
    return _let([(v, x), (u, v + _f(1.0))], _logarithm(v, u, positive))


_RULES: dict[str, Callable[[Expr], Expr]] = {
    "exp": exp,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "erf": erf,
    "log": log,
    "log1p": log1p,
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
    first = a if isinstance(a, tirx.Var | TensorLoad) else _var("m", dtype)
    value = tirx.Select(first <= tirx.FloatImm(dtype, _INF), kind(first, b), first)
    return value if first is a else tirx.Let(first, a, value)


def _quotient(kind: type, a: Expr, b: Expr) -> Expr:
    """Return an integer quotient or remainder that does not trap: x / 0 is 0, as in NumPy; -2^63 / -1 wraps around."""
    dtype = str(b.ty)
    signed = dtype.startswith("int")
    x, y = _var("x", dtype), _var("y", dtype)
    zero, one = (tirx.IntImm(dtype, i) for i in (0, 1))
    odd = tirx.EQ(y, zero)
    # A factor after the division: TVM's simplifier would remove the guard of a divisor inside a condition on y.
    factor = tirx.Select(odd, zero, one)
    if signed:
        by_minus_one = tirx.EQ(y, tirx.IntImm(dtype, -1))
        quotient = kind in (tirx.Div, tirx.FloorDiv)
        factor = tirx.Select(by_minus_one, tirx.IntImm(dtype, -1) if quotient else zero, factor)
        odd = tirx.Or(odd, by_minus_one)
    return _let([(x, a), (y, b)], kind(x, tirx.Select(odd, one, y)) * factor)


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

    def __init__(self) -> None:
        super().__init__()
        self._in_smooth = False

    def call(self, call: Call, args: list[Expr]) -> Expr:
        name = _name(call)
        if name == CALL_PURE_EXTERN and str(args[0].value) == "expm1f":
            return expm1(args[1])
        dtype = str(call.ty)
        if name in _RULES and dtype == "float32":
            return _RULES[name](args[0])
        if name in _RULES and dtype == "float16":
            # Intermediate results may exceed the range of float16; e^12 does.
            return tirx.Cast(dtype, _RULES[name](tirx.Cast("float32", args[0])))
        return super().call(call, args)

    def visit(self, e: Expr) -> Expr:
        # A division costs ten times a multiplication by the reciprocal, which adds one rounding. In the argument of a
        # function such as erf this is harmless. Elsewhere it shows: 41 * (1/41) is below 1, so Floor would give 0.
        if isinstance(e, tirx.Div) and isinstance(e.b, tirx.FloatImm) and str(e.ty) == "float32":
            divisor = float(e.b.value)
            if 1e-30 < abs(divisor) < 1e30 and (self._in_smooth or abs(math.frexp(divisor)[0]) == 0.5):
                return self.visit(e.a) * _f(1.0 / divisor)
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


def vectorizable(value: Expr) -> Expr:
    """Return `value` with transcendental functions as arithmetic, and with the rewrites of `Safe`."""
    return _Vectorizable().visit(value)


def is_cheap(value: Expr) -> bool:
    """Return whether computing `value` again costs no more than loading it: no call, no division, at most one load."""
    return len(loads(value)) <= 1 and not any(isinstance(e, Call | tirx.Div) for e in walk(value))
