"""exp, tanh, erf, sigmoid as arithmetic that vectorises: LLVM calls the C library once a lane for them.

Accuracy is a few units in the last place of float32. NaN stays NaN, exp overflows to inf and underflows to 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Call, Expr

from zmq_offload.compile.schedules.rewrite import Rewriter, loads, walk

# ln 2 in two parts, the first with trailing zeros, so that n * LN2_HIGH is exact (Cody and Waite).
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.42860677e-06
_LOG2_E = 1.4426950408889634
# float32's exp overflows above the first and rounds to 0 below the second.
_EXP_MAX, _EXP_MIN = 88.72283935546875, -103.97208
# Taylor's series of exp on |r| <= ln(2)/2: the first term left out, r^8/8!, is below 6e-9.
_EXP_TERMS = tuple(1.0 / f for f in (5040, 720, 120, 24, 6, 2, 1, 1))


def _f(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def _i(value: int) -> Expr:
    return tirx.IntImm("int32", value)


def _horner(x: Expr, terms: Sequence[float]) -> Expr:
    total = _f(terms[0])
    for term in terms[1:]:
        total = total * x + _f(term)
    return total


def _named(name: str, value: Expr) -> tuple[tirx.Var, Expr]:
    return tirx.Var(name, "float32"), value


def _within(bindings: Sequence[tuple[tirx.Var, Expr]], body: Expr) -> Expr:
    for var, value in reversed(bindings):
        body = tirx.Let(var, value, body)
    return body


def _power_of_two(n: Expr) -> Expr:
    return tirx.reinterpret("float32", tirx.Mul(n + _i(127), _i(1 << 23)))


def exp(x: Expr) -> Expr:
    """e^x: x = n ln 2 + r, a polynomial for e^r, 2^n by its bits in two halves so that neither overflows."""
    v, _ = _named("x", x)
    c, clamped = _named("c", tirx.Max(tirx.Min(v, _f(_EXP_MAX)), _f(_EXP_MIN)))
    n, nearest = _named("n", tirx.floor(c * _f(_LOG2_E) + _f(0.5)))
    r, rest = _named("r", (c - n * _f(_LN2_HIGH)) - n * _f(_LN2_LOW))
    whole = tirx.Var("k", "int32")
    half = tirx.Var("h", "int32")
    value = (_horner(r, _EXP_TERMS) * _power_of_two(half)) * _power_of_two(whole - half)
    value = tirx.Select(v > _f(_EXP_MAX), _f(float("inf")), value)
    value = tirx.Select(tirx.isnan(v), v, value)
    value = tirx.Let(half, tirx.RShift(whole, _i(1)), value)
    value = tirx.Let(whole, tirx.Cast("int32", n), value)
    return _within([(v, x), (c, clamped), (n, nearest), (r, rest)], value)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    return tirx.Div(_f(1.0), _f(1.0) + exp(_f(0.0) - x))


# tanh x = x - x^3/3 + ... near 0, where (1 - e^-2x)/(1 + e^-2x) would cancel; below the bound the term after these is
# under 1e-8 relative.
_TANH_SMALL = 0.25
_TANH_TERMS = (-1382.0 / 155925.0, 62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0)


def tanh(x: Expr) -> Expr:
    """Taylor near 0, else by e^(-2|x|), which cannot overflow."""
    v, _ = _named("x", x)
    s, square = _named("s", v * v)
    a = tirx.Var("a", "float32")
    e, power = _named("e", exp(_f(-2.0) * a))
    large = tirx.Div(_f(1.0) - e, _f(1.0) + e)
    signed = tirx.Select(v < _f(0.0), _f(0.0) - large, large)
    value = tirx.Select(a < _f(_TANH_SMALL), v * _horner(s, _TANH_TERMS), signed)
    return _within(
        [(v, x), (s, square), (a, tirx.Max(v, _f(0.0) - v)), (e, power)], tirx.Select(tirx.isnan(v), v, value)
    )


# erf x = x P(x^2) for |x| < 1 (Maclaurin to x^17, next term below 1e-8), else
# 1 - e^(-x^2) t Q(t), t = 1/(1 + 0.3275911 |x|): Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
_ERF_TERMS = tuple(
    1.1283791670955126 * t
    for t in (
        *(1.0 / 685440.0, -1.0 / 75600.0, 1.0 / 9360.0, -1.0 / 1320.0),
        *(1.0 / 216.0, -1.0 / 42.0, 1.0 / 10.0, -1.0 / 3.0, 1.0),
    )
)
_ERFC_TERMS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def erf(x: Expr) -> Expr:
    """The error function, by series near 0 and by 1 - erfc further out."""
    v, _ = _named("x", x)
    s, square = _named("s", v * v)
    a = tirx.Var("a", "float32")
    t, fraction = _named("t", tirx.Div(_f(1.0), _f(1.0) + _f(0.3275911) * a))
    large = _f(1.0) - exp(_f(0.0) - s) * t * _horner(t, _ERFC_TERMS)
    signed = tirx.Select(v < _f(0.0), _f(0.0) - large, large)
    value = tirx.Select(a < _f(1.0), v * _horner(s, _ERF_TERMS), signed)
    bindings = [(v, x), (s, square), (a, tirx.Max(v, _f(0.0) - v)), (t, fraction)]
    return _within(bindings, tirx.Select(tirx.isnan(v), v, value))


_RULES = {"exp": exp, "sigmoid": sigmoid, "tanh": tanh, "erf": erf}


class _Vectorisable(Rewriter):
    """Replaces the calls, and divisions by a literal whose reciprocal is as good."""

    def __init__(self) -> None:
        super().__init__({})

    def call(self, call: Call, args: list[Expr]) -> Expr:
        name = str(getattr(call.op, "name", "")).rsplit(".", 1)[-1]
        if name in _RULES and str(call.ty) == "float32":
            return _RULES[name](args[0])
        return super().call(call, args)

    def visit(self, e: Expr) -> Expr:
        # A division by a literal costs ten times a multiplication by its reciprocal and differs by one rounding.
        if isinstance(e, tirx.Div) and isinstance(e.b, tirx.FloatImm) and str(e.ty) == "float32":
            divisor = float(e.b.value)
            if 1e-30 < abs(divisor) < 1e30:
                return self.visit(e.a) * _f(1.0 / divisor)
        return super().visit(e)


def vectorisable(value: Expr) -> Expr:
    """`value` with transcendental functions written out."""
    return _Vectorisable().visit(value)


def is_cheap(value: Expr) -> bool:
    """Whether computing `value` again costs no more than loading it: no calls, no divisions, one load."""
    return len(loads(value)) <= 1 and not any(isinstance(e, Call | tirx.Div) for e in walk(value))
