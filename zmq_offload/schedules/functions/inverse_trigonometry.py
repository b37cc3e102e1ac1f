"""asin, acos and atan of float32 as vector code: a polynomial of x^2, after one step that makes x small."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from zmq_offload.schedules.functions.transcendental import f32, horner, let, var, with_sign

# pi/2 as the sum of two numbers.
_HALF_PI, _HALF_PI_LOW = 1.57079637050628662109375, -4.37113900018624283e-8
# (asin(x)/x - 1)/x^2 for 0 <= x <= 1/2, highest power of x^2 first. The relative error of asin is below 5e-9.
_ASIN_TERMS = (
    *(0.04221859324435206, 0.024147586364132112, 0.04547710163424844, 0.07495241749506178),
    0.1666675392843911,
)
# (atan(x)/x - 1)/x^2 for 0 <= x <= 1. The relative error of atan is below 3e-9.
_ATAN_TERMS = (
    *(-0.001793617748057546, 0.010914588775367618, -0.031177815665261448, 0.05795756476629724),
    *(-0.08403448737032061, 0.10952185263310729, -0.14264241589016974, 0.19998548276373246, -0.3333329908888675),
)


class _Halved:
    """`small` is |x| up to 1/2, and sqrt((1 - |x|)/2) above: asin |x| = pi/2 - 2 asin(small). NaN above 1."""

    def __init__(self, x: Expr) -> None:
        self.v, a, self.small, z, self.arc = (var(name) for name in ("x", "a", "s", "z", "p"))
        self.near = a <= f32(0.5)
        rest = f32(0.5) - f32(0.5) * a
        self.bindings = [
            (self.v, x),
            (a, tirx.abs(self.v)),
            (z, tirx.Select(self.near, a * a, rest)),
            (self.small, tirx.Select(self.near, a, tirx.sqrt(rest))),
            (self.arc, self.small + self.small * (z * horner(z, _ASIN_TERMS))),
        ]


def asin(x: Expr) -> Expr:
    """The inverse sine."""
    half = _Halved(x)
    far = f32(_HALF_PI) - (half.arc + half.arc - f32(_HALF_PI_LOW))
    return let(half.bindings, with_sign(tirx.Select(half.near, half.arc, far), half.v))


def acos(x: Expr) -> Expr:
    """The inverse cosine: pi/2 - asin x up to 1/2, 2 asin(small) above, and pi minus that for negative x."""
    half = _Halved(x)
    double = half.arc + half.arc
    negative = half.v < f32(0.0)
    opposite = f32(2.0 * _HALF_PI) - (double - f32(2.0 * _HALF_PI_LOW))
    signed = tirx.Select(negative, f32(0.0) - half.arc, half.arc)
    near = f32(_HALF_PI) - (signed - f32(_HALF_PI_LOW))
    return let(half.bindings, tirx.Select(half.near, near, tirx.Select(negative, opposite, double)))


def atan(x: Expr) -> Expr:
    """The inverse tangent: pi/2 - atan(1/x) above 1."""
    v, a, t, z, arc = (var(name) for name in ("x", "a", "t", "z", "p"))
    above = a > f32(1.0)
    far = f32(_HALF_PI) - (arc - f32(_HALF_PI_LOW))
    bindings = [
        (v, x),
        (a, tirx.abs(v)),
        (t, tirx.Div(tirx.Select(above, f32(1.0), a), tirx.Select(above, a, f32(1.0)))),
        (z, t * t),
        (arc, t + t * (z * horner(z, _ATAN_TERMS))),
    ]
    return let(bindings, with_sign(tirx.Select(above, far, arc), v))
