"""sin, cos and tan of float32, computed in float64, as arithmetic that vectorizes, for all of float32.

x times 2/pi, modulo 4, gives the quadrant and the place in it. Large x are scaled down to an integer x' = x / 2^(27 k),
with 2^(27 k) 2/pi modulo 4 in three parts; so no digit of the product that matters is lost (Payne and Hanek).
"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.ir import Expr

from zmq_offload.schedules.functions.transcendental import let

# The first 256 bits of 2/pi.
_TWO_OVER_PI = 0xA2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBBC561
_SHIFT = 27
# Smallest |x| of each scale. x has 24 bits, so that x / 2^27 is an integer from the first limit on.
_LIMITS = (2.0**50, 2.0**77, 2.0**104)
# Adding these rounds to multiples of 1 and 4.
_ROUND, _ROUND_FOUR = 1.5 * 2.0**52, 1.5 * 2.0**54
_SIN_TERMS = tuple((-1) ** i / math.factorial(2 * i + 1) for i in range(6))
_COS_TERMS = tuple((-1) ** i / math.factorial(2 * i) for i in range(6))


def _parts(k: int) -> tuple[float, float, float]:
    """2^(27 k) 2/pi modulo 4: a multiple of 2^-27, one of 2^-56, and the rest, so that the first two products with 24
    bits are exact."""
    bits = 256 - _SHIFT * k
    value = _TWO_OVER_PI % (1 << (bits + 2))
    first, value = divmod(value, 1 << (bits - 27))
    second, value = divmod(value, 1 << (bits - 56))
    return first * 2.0**-27, second * 2.0**-56, value / (1 << bits)


def _d(value: float) -> Expr:
    return tirx.FloatImm("float64", value)


def _horner(z: Expr, terms: tuple[float, ...]) -> Expr:
    total = _d(terms[-1])
    for term in reversed(terms[:-1]):
        total = total * z + _d(term)
    return total


class _Reduced:
    """`bindings` define the quadrant `odd` and `number`, and sin and cos of the angle in it."""

    def __init__(self, x: Expr) -> None:
        names = ("x", "a", "r1", "r2", "r3", "f1", "f2", "t1", "t2", "t3", "n", "f", "z", "s", "c")
        v, a, r1, r2, r3, f1, f2, t1, t2, t3, n, f, z, self.sin, self.cos = (
            tirx.Var(name, "float64") for name in names
        )
        self.quadrant = tirx.Var("q", "int32")
        scales = [(_d(2.0 ** (-_SHIFT * k)), *map(_d, _parts(k))) for k in range(len(_LIMITS) + 1)]
        scale, *parts = scales[0]
        for limit, values in zip(_LIMITS, scales[1:], strict=True):
            below = a < _d(limit)
            scale, *parts = (tirx.Select(below, s, t) for s, t in zip((scale, *parts), values, strict=True))
        scale = tirx.Select(a < _d(float("inf")), scale, _d(float("nan")))
        scaled = tirx.Var("y", "float64")
        rounded = tirx.Cast("float32", n) + tirx.FloatImm("float32", 12582912.0)
        self.bindings: list[tuple[tirx.Var, Expr]] = [
            (v, tirx.Cast("float64", x)),
            (a, tirx.abs(v)),
            (scaled, v * scale),
            (r1, scaled * parts[0]),
            (r2, scaled * parts[1]),
            (r3, scaled * parts[2]),
            # Bound separately: TVM would simplify (a + b) - b.
            (t1, r1 + _d(_ROUND_FOUR)),
            (t2, r2 + _d(_ROUND_FOUR)),
            (f1, r1 - (t1 - _d(_ROUND_FOUR))),
            (f2, r2 - (t2 - _d(_ROUND_FOUR))),
            (t3, (f1 + f2) + _d(_ROUND)),
            (n, t3 - _d(_ROUND)),
            (f, (((f1 - n) + f2) + r3) * _d(math.pi / 2)),
            (self.quadrant, tirx.reinterpret("int32", rounded)),
            (z, f * f),
            (self.sin, f * _horner(z, _SIN_TERMS)),
            (self.cos, _horner(z, _COS_TERMS)),
        ]

    def bit(self, shift: int, added: int = 0) -> Expr:
        """Bit `shift` of the quadrant plus `added`."""
        quadrant = self.quadrant + tirx.IntImm("int32", added)
        return tirx.BitwiseAnd(quadrant, tirx.IntImm("int32", 1 << shift))

    def value(self, swapped: bool, added: int) -> Expr:
        """The sine or cosine in the quadrant, negative if bit 1 of the quadrant plus `added` is set."""
        odd = tirx.EQ(self.bit(0), tirx.IntImm("int32", int(not swapped)))
        result = tirx.Cast("float32", tirx.Select(odd, self.cos, self.sin))
        sign = tirx.LShift(self.bit(1, added), tirx.IntImm("int32", 30))
        signed = tirx.BitwiseXor(tirx.reinterpret("int32", result), sign)
        return let(self.bindings, tirx.reinterpret("float32", signed))


def sin(x: Expr) -> Expr:
    """The sine."""
    return _Reduced(x).value(swapped=False, added=0)


def cos(x: Expr) -> Expr:
    """The cosine: the sine in the next quadrant."""
    return _Reduced(x).value(swapped=True, added=1)


def tan(x: Expr) -> Expr:
    """The tangent: sin/cos, or -cos/sin in odd quadrants."""
    angle = _Reduced(x)
    odd = tirx.EQ(angle.bit(0), tirx.IntImm("int32", 1))
    above = tirx.Select(odd, _d(0.0) - angle.cos, angle.sin)
    below = tirx.Select(odd, angle.sin, angle.cos)
    return let(angle.bindings, tirx.Cast("float32", tirx.Div(above, below)))
