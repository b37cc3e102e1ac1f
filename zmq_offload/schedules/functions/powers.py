"""x^y of float32 as arithmetic that vectorizes, as C defines it: computed in float64, rounded once.

x^y = 2^(y log2 |x|), with the sign of x if y is odd. For float32, float64 has digits enough that no step needs a second
part, and its range leaves overflow and denormals to the last rounding.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from zmq_offload.schedules.functions.transcendental import bits_of, f32, i32, let, var

# 2 atanh(s) / (s ln 2) as a polynomial of s^2 < 0.0295, and 2^r for |r| <= 1/2; highest powers first. Their relative
# errors are below 1e-13 and 2e-9.
_LOG2_TERMS = (
    *(0.2829106272591716, 0.3199049290040587, 0.41220927217512093),
    *(0.5770779421578438, 0.9617966941140571, 2.88539008177785),
)
_EXP2_TERMS = (
    *(0.00015478022024088302, 0.0013400431875167298, 0.009617994515096614, 0.055503272152459704),
    *(0.24022651505046314, 0.6931472067098907, 0.9999999999190676),
)
# Adding it rounds to an integer. The same number with another exponent makes a float64 of an integer in its low bits.
_ROUND, _INTEGER = 1.5 * 2.0**52, 2.0**52
# Exponents from here on act as infinite ones do, and are even; logarithms of 0 and infinity that exceed all others,
# and stay finite, so that y = 0 times them is 0. Beyond 2^-200 and 2^200, float32 has only 0 and infinity.
_HUGE, _LIMIT_LOG, _LIMIT = 2.0**40, 2.0**200, 200.0
_SQRT_HALF = 0x3FE6A09E667F3BCD
_INF, _NAN = float("inf"), float("nan")


def _d(value: float) -> Expr:
    return tirx.FloatImm("float64", value)


def _q(value: int) -> Expr:
    return tirx.const(value, "uint64")


def _bits(x: Expr) -> Expr:
    return tirx.reinterpret("uint64", x)


def _of_bits(x: Expr) -> Expr:
    return tirx.reinterpret("float64", x)


def _horner(z: Expr, terms: tuple[float, ...]) -> Expr:
    total = _d(terms[0])
    for term in terms[1:]:
        total = total * z + _d(term)
    return total


def _log2(a: Expr) -> Expr:
    """The logarithm of a float32 that is not negative, as a float64; finite numbers for 0 and infinity; NaN for NaN."""
    v, k, f, s, z = (var(name, "float64") for name in ("a", "k", "f", "s", "z"))
    offset = tirx.Var("b", "uint64")
    # Exponent and significand of a / sqrt(1/2), plus 1024 so that the exponent is positive.
    exponent = tirx.BitwiseOr(tirx.RShift(offset, _q(52)), _bits(_d(_INTEGER)))
    significand = tirx.BitwiseAnd(offset, _q((1 << 52) - 1)) + _q(_SQRT_HALF)
    bindings = [
        (v, a),
        (offset, _bits(v) + _q((1024 << 52) - _SQRT_HALF)),
        (k, _of_bits(exponent) - _d(_INTEGER + 1024.0)),
        (f, _of_bits(significand) - _d(1.0)),
        (s, tirx.Div(f, f + _d(2.0))),
        (z, s * s),
    ]
    finite = tirx.Select(v > _d(0.0), s * _horner(z, _LOG2_TERMS) + k, _d(-_LIMIT_LOG))
    infinite = tirx.Select(v > _d(0.0), _d(_LIMIT_LOG), v)
    return let(bindings, tirx.Select(v < _d(_INF), finite, infinite))


def _exp2(w: Expr) -> Expr:
    """2^w as a float32, for |w| up to 200; NaN for NaN."""
    v, t, n = (var(name, "float64") for name in ("w", "t", "n"))
    scale = _of_bits(tirx.LShift(_bits(t), _q(52)) + _bits(_d(1.0)))
    bindings = [(v, w), (t, v + _d(_ROUND)), (n, t - _d(_ROUND))]
    r = var("r", "float64")
    return let([*bindings, (r, v - n)], tirx.Cast("float32", _horner(r, _EXP2_TERMS) * scale))


def _is_integer(y: tirx.Var, name: str) -> tuple[list[tuple[tirx.Var, Expr]], Expr]:
    """Bindings for, and whether `y` is an integer. (TVM would simplify (y + a) - a.)"""
    moved = var(name, "float64")
    return [(moved, y + _d(_ROUND))], tirx.EQ(moved - _d(_ROUND), y)


def power(x: Expr, y: Expr) -> Expr:
    """x^y. 1^y and x^0 are 1, also for NaN."""
    if isinstance(y, tirx.FloatImm) and (simple := _simple(x, float(y.value))) is not None:
        return simple
    v, e, result = var("x"), var("y"), var("r")
    exponent, half, w = (var(name, "float64") for name in ("e", "h", "w"))
    whole_bindings, whole = _is_integer(exponent, "i")
    half_bindings, even = _is_integer(half, "j")
    wide = tirx.Cast("float64", e)
    product = exponent * _log2(tirx.Cast("float64", tirx.abs(v)))
    # Minima and maxima in this order keep NaN.
    bindings = [
        (v, x),
        (e, y),
        (exponent, tirx.Min(_d(_HUGE), tirx.Max(_d(-_HUGE), wide))),
        (half, exponent * _d(0.5)),
        *whole_bindings,
        *half_bindings,
        (w, tirx.Min(_d(_LIMIT), tirx.Max(_d(-_LIMIT), product))),
        (result, _exp2(w)),
    ]
    sign = tirx.Select(tirx.And(whole, tirx.Not(even)), i32(-(1 << 31)), i32(0))
    signed = tirx.reinterpret("float32", tirx.BitwiseOr(bits_of(result), tirx.BitwiseAnd(bits_of(v), sign)))
    undefined = tirx.And(tirx.And(v < f32(0.0), v > f32(-_INF)), tirx.Not(whole))
    value = tirx.Select(undefined, f32(_NAN), signed)
    one = tirx.Or(tirx.EQ(v, f32(1.0)), tirx.EQ(e, f32(0.0)))
    return let(bindings, tirx.Select(one, f32(1.0), value))


def _simple(x: Expr, y: float) -> Expr | None:
    """x^y for exponents that take a few multiplications, a root or a division."""
    v, root = var("x"), var("s")
    # The root of -0 is -0 and that of -infinity NaN. As powers they are 0 and infinity.
    rooted = tirx.Select(tirx.EQ(v, f32(0.0)), f32(0.0), tirx.Select(v > f32(-_INF), tirx.sqrt(v), tirx.abs(v)))
    one = f32(1.0)
    inverse = tirx.Div(one, v)
    # A power of the inverse: that of x may overflow where the result is a denormal.
    forms = {
        0.0: lambda: one,
        0.5: lambda: rooted,
        -0.5: lambda: let([(root, rooted)], tirx.Div(one, root)),
        1.0: lambda: v,
        2.0: lambda: v * v,
        3.0: lambda: v * v * v,
        4.0: lambda: let([(root, v * v)], root * root),
        -1.0: lambda: inverse,
        -2.0: lambda: let([(root, inverse)], root * root),
    }
    return let([(v, x)], forms[y]()) if y in forms else None
