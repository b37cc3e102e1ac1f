"""Transcendental functions of float32 as arithmetic that vectorizes. (LLVM calls the C library for each lane.)

docs/numbers.md has the error of each; tests measure it. NaN stays NaN without isnan: on AVX2, a `Select` on isnan
becomes a branch for each lane. Comparisons with NaN are false, and each formula then picks the operand that is NaN.

All but log need e^r for |r| <= ln(2)/2. Its polynomial is evaluated by Estrin's scheme: fewer steps depend on each
other than in Horner's. What limits such code is a CPU's queue of waiting instructions, not its arithmetic units.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr

_INF = float("inf")
# ln 2 in two parts, the first with trailing zeros, so that n * LN2_HIGH is exact (Cody and Waite).
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.42860677e-06
_LOG2_E = 1.4426950408889634
_HALF_LN2 = 0.34657359027997264
# exp(x) rounds to 0 below the first, and is a denormal from there to -87.3, as in NumPy and ONNX Runtime. It underflows
# at the second, overflows at the third, and adding it to 1 changes nothing below the last.
_EXP_MIN, _EXP_UNDER, EXP_OVER, _EXP_NONE = -103.97207641601562, -104.5, 89.0, -40.0
# (e^r - 1 - r)/r^2 for |r| <= ln(2)/2 as a polynomial: the relative error of e^r - 1 is below 1.4e-8.
_EXP_TERMS = (0.4999999701976776, 0.1666654646396637, 0.04166743531823158, 0.008366262540221214, 0.0013870670227333903)
# Adding 1.5 * 2^23 rounds and leaves an integer in the low bits of the significand, without a conversion to int32,
# which is undefined for NaN.
_ROUND, _ROUND_BITS = 12582912.0, 0x4B400000


def f32(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def i32(value: int) -> Expr:
    return tirx.IntImm("int32", value)


def var(name: str, dtype: str = "float32") -> tirx.Var:
    return tirx.Var(name, dtype)


def let(bindings: Sequence[tuple[tirx.Var, Expr]], body: Expr) -> Expr:
    """Return `body` with the variables bound, the first one outermost."""
    for var, value in reversed(bindings):
        body = tirx.Let(var, value, body)
    return body


def bits_of(x: Expr) -> Expr:
    return tirx.reinterpret("int32", x)


def horner(x: Expr, terms: Sequence[float]) -> Expr:
    total = f32(terms[0])
    for term in terms[1:]:
        total = total * x + f32(term)
    return total


def with_sign(magnitude: Expr, x: Expr) -> Expr:
    """`magnitude`, which has no sign, with the sign of `x`."""
    sign = tirx.BitwiseAnd(bits_of(x), i32(-(1 << 31)))
    return tirx.reinterpret("float32", tirx.BitwiseOr(bits_of(magnitude), sign))


def is_nonpositive(x: Expr) -> bool:
    """Return whether an expression says of itself that it is not above 0. `extremum` puts a literal first."""
    return isinstance(x, tirx.Min) and isinstance(x.a, tirx.FloatImm) and float(x.a.value) <= 0


class Power:
    """e^c: c = n ln 2 + r. `bindings` define `less` = e^r - 1, `scale` = 2^(n + added), and `product` of the two.

    For all c, n + added is from -126 to 127; it is the exponent of `scale`, shifted there from the low bits of a sum.
    """

    def __init__(self, c: Expr, added: Expr | int = 0) -> None:
        v, t, whole, r, r2, round_ = (var(name) for name in ("c", "t", "k", "r", "r2", "o"))
        self.less, self.scale, self.product = var("p"), var("s"), var("q")
        c2, c3, c4, c5, c6 = (f32(term) for term in _EXP_TERMS)
        polynomial = (c2 + c3 * r) + ((c4 + c5 * r) + c6 * r2) * r2
        self.bindings: list[tuple[tirx.Var, Expr]] = [
            (v, c),
            (round_, f32(_ROUND + 127 + added) if isinstance(added, int) else added + f32(_ROUND + 127)),
            (t, v * f32(_LOG2_E) + round_),
            (whole, t - round_),
            (r, (v - whole * f32(_LN2_HIGH)) - whole * f32(_LN2_LOW)),
            (r2, r * r),
            (self.less, polynomial * r2 + r),
            (self.scale, tirx.reinterpret("float32", tirx.LShift(bits_of(t), i32(23)))),
            (self.product, self.less * self.scale),
        ]


def exp(x: Expr) -> Expr:
    """e^x, as two factors with normal exponents. Where the result rounds to 0, the second one is 0 and the first e^0:
    denormals cost some CPUs a hundred cycles."""
    v, second = var("x"), var("f")
    negative = v < f32(0.0)
    added = tirx.Select(negative, f32(24.0), f32(-24.0))
    zero = v < f32(_EXP_MIN)
    power = Power(tirx.Min(f32(EXP_OVER), tirx.Select(zero, f32(0.0), v)), added)
    factor = tirx.Select(negative, f32(2.0**-24), f32(2.0**24))
    bindings = [(v, x), *power.bindings, (second, tirx.Select(zero, f32(0.0), factor))]
    return let(bindings, (power.product + power.scale) * second)


def exp_of_nonpositive(x: Expr) -> Expr:
    """e^x for an x that is not above 0: the second factor has one value fewer."""
    v, second = var("x"), var("f")
    zero = v < f32(_EXP_MIN)
    power = Power(tirx.Select(zero, f32(0.0), v), 24)
    bindings = [(v, x), *power.bindings, (second, tirx.Select(zero, f32(0.0), f32(2.0**-24)))]
    return let(bindings, (power.product + power.scale) * second)


def exp_by_scaling(x: Expr) -> Expr:
    """e^x, for a CPU that multiplies by 2^n in one instruction, with denormals, 0 and infinity at the ends.

    Horner's scheme is the faster one here, and the sum with 1 is its last step. Where the result rounds to 0, the
    instruction is masked: denormals cost some CPUs a hundred cycles.
    """
    v, c, moved, whole, r, p = (var(name) for name in ("x", "c", "t", "k", "r", "p"))
    bindings = [
        (v, x),
        (c, tirx.Max(f32(_EXP_UNDER), v if is_nonpositive(x) else tirx.Min(f32(EXP_OVER), v))),
        (moved, c * f32(_LOG2_E) + f32(_ROUND)),
        (whole, moved - f32(_ROUND)),
        (r, (c - whole * f32(_LN2_HIGH)) - whole * f32(_LN2_LOW)),
        (p, horner(r, (*reversed(_EXP_TERMS), 1.0, 1.0))),
    ]
    scaled = tirx.call_llvm_pure_intrin("float32", "llvm.ldexp", p, bits_of(moved) - i32(_ROUND_BITS))
    return let(bindings, tirx.Select(v < f32(_EXP_MIN), f32(0.0), scaled))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x) as 2^-40 / (2^-40 + 2^-40 e^-x): no part overflows or underflows, and the quotient keeps all bits
    of a denormal."""
    power = Power(tirx.Min(f32(-_EXP_UNDER), tirx.Max(f32(_EXP_NONE), f32(0.0) - x)), -40)
    small = f32(2.0**-40)
    return let(power.bindings, tirx.Div(small, power.product + (power.scale + small)))


# tanh(r)/r - 1 for |r| <= ln(2)/4 as r^2 times a polynomial of r^2; the relative error of tanh r is below 6e-8.
_TANH_TERMS = (0.13110455, -0.33331269)
# From here on tanh is 1.
_TANH_ONE = 9.02


def tanh(x: Expr) -> Expr:
    """((s + 1) t - (1 - s)) / ((s + 1) - (1 - s) t) with x = n ln(2)/2 + r, s = 2^n and t = tanh r.

    Near 0, s is 1, so that the quotient is 2 t / 2, also for -0. The numerator never exceeds the denominator. ln(2)/2
    as a float32 is close enough: n is at most 26, and the larger it is, the flatter is tanh.
    """
    v, moved, whole, r, r2, t, s, above, below = (var(name) for name in ("x", "t", "k", "r", "r2", "h", "s", "u", "w"))
    bindings = [
        (v, tirx.Max(f32(-_TANH_ONE), tirx.Min(f32(_TANH_ONE), x))),
        (moved, v * f32(2.0 * _LOG2_E) + f32(_ROUND + 127)),
        (whole, moved - f32(_ROUND + 127)),
        (r, v - whole * f32(_HALF_LN2)),
        (r2, r * r),
        (t, horner(r2, (*_TANH_TERMS, 1.0)) * r),
        (s, tirx.reinterpret("float32", tirx.LShift(bits_of(moved), i32(23)))),
        (above, s + f32(1.0)),
        (below, f32(1.0) - s),
    ]
    return let(bindings, tirx.Div(above * t - below, above - below * t))


# -log(1 - erf a) / a for 0 <= a <= 3.95, where erf is 1; the relative error of the result is below 4e-8.
_ERF_LARGE = 3.95
_ERF_TERMS = (
    *(1.128379225730896, 0.6366152763366699, 0.10282658785581589, -0.01936429925262928),
    *(0.00027313095051795244, 0.0011992250801995397, -0.0003614557790569961, 3.794668737100437e-05),
)


def erf(x: Expr) -> Expr:
    """The error function: 1 - e^-g, where g is |x| times a polynomial. Near 0, 1 - e^-g keeps all digits of g."""
    v, a, a2, g = (var(name) for name in ("x", "a", "a2", "g"))
    g0, g1, g2, g3, g4, g5, g6, g7 = (f32(term) for term in _ERF_TERMS)
    low, high = (g0 + g1 * a) + (g2 + g3 * a) * a2, (g4 + g5 * a) + (g6 + g7 * a) * a2
    power = Power(f32(0.0) - g)
    bindings = [
        (v, x),
        (a, tirx.Min(f32(_ERF_LARGE), tirx.abs(v))),
        (a2, a * a),
        (g, (high * (a2 * a2) + low) * a),
        *power.bindings,
    ]
    return let(bindings, with_sign((f32(1.0) - power.scale) - power.product, v))


def expm1(x: Expr) -> Expr:
    """e^x - 1 = 2^n (e^r - 1) + 2^n - 1: nothing cancels, since n is 0 if e^x is near 1."""
    power = Power(tirx.Min(f32(EXP_OVER), tirx.Max(f32(_EXP_NONE), x)), -1)
    return let(power.bindings, (power.product + (power.scale - f32(0.5))) * f32(2.0))


# The significand is in [sqrt(1/2), sqrt(2)); log(1 + f) = 2 atanh(s), s = f/(2 + f): 2s (1 + z/3 + z^2/5 + ...) with
# z = s^2 < 0.0295, so that the first omitted term, z^5/11, is below 3e-9.
_SQRT_HALF_BITS = 0x3F3504F3
_ATANH_TERMS = (2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0)
_LEAST_NORMAL = 1.1754943508222875e-38


def _log_of_positive(x: Expr) -> Expr:
    """The logarithm of a finite number above 0, also of denormals."""
    v, u, f, s, z, k, h = (var(name) for name in "xufszkh")
    bits = var("b", "int32")
    tiny = v < f32(_LEAST_NORMAL)
    exponent = tirx.Cast("float32", tirx.RShift(bits, i32(23)))
    significand = tirx.reinterpret("float32", tirx.BitwiseAnd(bits, i32(0x7FFFFF)) + i32(_SQRT_HALF_BITS))
    return let(
        [
            (v, x),
            (u, tirx.Select(tiny, v * f32(2.0**25), v)),
            (bits, bits_of(u) - i32(_SQRT_HALF_BITS)),
            (k, exponent - tirx.Select(tiny, f32(25.0), f32(0.0))),
            (f, significand - f32(1.0)),
            (s, tirx.Div(f, f32(2.0) + f)),
            (z, s * s),
            (h, f32(0.5) * f * f),
        ],
        k * f32(_LN2_HIGH) + (f - (h - (s * (h + z * horner(z, _ATANH_TERMS)) + k * f32(_LN2_LOW)))),
    )


def _logarithm(v: Expr, u: Expr, positive: Expr) -> Expr:
    """`positive` for u > 0 and finite `v`; -inf for u = 0, NaN for u < 0, and `v` if that is infinite or NaN."""
    below = tirx.Select(tirx.EQ(u, f32(0.0)), f32(-_INF), f32(float("nan")))
    return tirx.Select(v < f32(_INF), tirx.Select(u > f32(0.0), positive, below), v)


def log(x: Expr) -> Expr:
    """The natural logarithm."""
    v = var("x")
    return let([(v, x)], _logarithm(v, v, _log_of_positive(v)))


def log1p(x: Expr) -> Expr:
    """log(1 + x), with the digits that 1 + x loses added."""
    v, u = var("x"), var("u")
    positive = _log_of_positive(u) + tirx.Div(v - (u - f32(1.0)), u)
    return let([(v, x), (u, v + f32(1.0))], _logarithm(v, u, positive))
