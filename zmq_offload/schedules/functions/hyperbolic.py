"""sinh, cosh and their inverses, and the inverse of tanh, of float32, as arithmetic that vectorizes."""

from __future__ import annotations

import math

from tvm import tirx
from tvm.ir import Expr

from zmq_offload.schedules.functions.transcendental import Power, f32, let, log1p, var, with_sign

# Here sinh and cosh are infinite, and e^x / 4 is not. Below the second number, sinh x is x.
_OVER, _SMALL = 89.5, 2.0**-12
# From here on sqrt(x^2 + 1) is x and log1p(x) is log(x); x^2 does not overflow.
_LARGE = 2.0**28
_LN2 = math.log(2.0)


def sinh(x: Expr) -> Expr:
    """(E + E / (E + 1)) / 2 with E = e^|x| - 1: near 0, E keeps all digits of x. A quarter of E does not overflow."""
    v, a, quarter = var("x"), var("a"), var("e")
    power = Power(tirx.Min(f32(_OVER), a), -2)
    value = (quarter + tirx.Div(quarter, f32(4.0) * quarter + f32(1.0))) * f32(2.0)
    bindings = [(v, x), (a, tirx.abs(v)), *power.bindings, (quarter, power.product + (power.scale - f32(0.25)))]
    # A quarter of a denormal loses digits.
    return let(bindings, with_sign(tirx.Select(a < f32(_SMALL), a, value), v))


def cosh(x: Expr) -> Expr:
    """(e^|x| + e^-|x|) / 2. A quarter of e^|x| does not overflow."""
    quarter = var("e")
    power = Power(tirx.Min(f32(_OVER), tirx.abs(x)), -2)
    return let(
        [*power.bindings, (quarter, power.product + power.scale)], (quarter + tirx.Div(f32(0.0625), quarter)) * f32(2.0)
    )


def asinh(x: Expr) -> Expr:
    """log(|x| + sqrt(x^2 + 1)) = log1p(|x| + x^2 / (1 + sqrt(x^2 + 1))): near 0, all digits of x are kept."""
    v, a, small, square = (var(name) for name in ("x", "a", "m", "q"))
    large = a > f32(_LARGE)
    near = small + tirx.Div(square, f32(1.0) + tirx.sqrt(square + f32(1.0)))
    bindings = [(v, x), (a, tirx.abs(v)), (small, tirx.Min(f32(_LARGE), a)), (square, small * small)]
    # log(2x) = log(x) + log(2).
    value = log1p(tirx.Select(large, a, near)) + tirx.Select(large, f32(_LN2), f32(0.0))
    return let(bindings, with_sign(value, v))


def acosh(x: Expr) -> Expr:
    """log(x + sqrt(x^2 - 1)) = log1p(t + sqrt(t (t + 2))) with t = x - 1: near 1, all digits of t are kept."""
    v, t = var("x"), var("t")
    large = v > f32(_LARGE)
    near = t + tirx.sqrt(t * (t + f32(2.0)))
    valid = tirx.Select(v >= f32(1.0), tirx.Select(large, v, near), f32(float("nan")))
    value = log1p(valid) + tirx.Select(large, f32(_LN2), f32(0.0))
    return let([(v, x), (t, v - f32(1.0))], value)


def atanh(x: Expr) -> Expr:
    """log1p(2 |x| / (1 - |x|)) / 2."""
    v, a = var("x"), var("a")
    value = log1p(tirx.Div(a + a, f32(1.0) - a)) * f32(0.5)
    return let([(v, x), (a, tirx.abs(v))], with_sign(value, v))
