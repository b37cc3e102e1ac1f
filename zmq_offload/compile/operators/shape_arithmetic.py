"""ONNX's arithmetic on the elements of values that are computed from extents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from tvm import ir, tirx

from zmq_offload.byoc.extents import Extent, Extents, fraction_of


class NotKnown(Exception):
    """The node does not compute a value from extents, or one that only the run determines."""


@dataclass(frozen=True)
class Ratio:
    """A floating-point number: an extent over a number. Sizes that scales change are such."""

    above: Extent
    below: int = 1


Scalar: TypeAlias = Any
"""An element: an integer, a boolean or an expression; a `Ratio` if the datatype is a floating-point one."""


class Arithmetic:
    """ONNX's arithmetic on elements."""

    def __init__(self, extents: Extents) -> None:
        self.extents = extents

    def add(self, a: Scalar, b: Scalar) -> Scalar:
        if isinstance(a, Ratio):
            below = math.lcm(a.below, b.below)
            scaled = [self.extents.product([r.above, below // r.below]) for r in (a, b)]
            return Ratio(self._normal(scaled[0] + scaled[1]), below)
        return self._normal(a + b)

    def subtract(self, a: Scalar, b: Scalar) -> Scalar:
        return self.add(a, self.multiply(b, Ratio(-1) if isinstance(b, Ratio) else -1))

    def multiply(self, a: Scalar, b: Scalar) -> Scalar:
        if isinstance(a, Ratio):
            if not isinstance(a.above, int) and not isinstance(b.above, int):
                raise NotKnown  # more digits than float32 has
            return self._ratio(self.extents.product([a.above, b.above]), a.below * b.below)
        return self.extents.product([a, b])

    def divide(self, a: Scalar, b: Scalar) -> Scalar:
        if isinstance(a, Ratio):
            quotient = self.extents.quotient(a.above, b.above) if b.above != 0 else None
            if quotient is not None:
                return self._ratio(self.extents.product([quotient, b.below]), a.below)
            if not isinstance(b.above, int) or b.above <= 0:
                raise NotKnown
            if isinstance(a.above, int):  # floating-point numbers are not exact fractions
                value = fraction_of(a.above * b.below / (a.below * b.above))
                if value is None:
                    raise NotKnown
                return Ratio(value.numerator, value.denominator)
            return self._ratio(self.extents.product([a.above, b.below]), a.below * b.above)
        if isinstance(a, int) and isinstance(b, int):
            if b == 0:
                raise NotKnown
            return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        exact = self.extents.quotient(a, b) if b != 0 else None
        if exact is not None:
            return exact
        # ONNX rounds toward zero, which is down for what is not negative.
        if not self.extents.at_least(a, 0) or not self.extents.at_least(b, 1):
            raise NotKnown
        return self.extents.floor_div(a, b) if isinstance(b, int) else tirx.FloorDiv(_expr(a), _expr(b))

    def modulo(self, a: Scalar, b: Scalar) -> Scalar:
        if isinstance(a, Ratio) or not isinstance(b, int) or b <= 0:
            raise NotKnown
        return self._normal(a - self.extents.floor_div(a, b) * b)

    def least(self, a: Scalar, b: Scalar) -> Scalar:
        return self._extreme(a, b, tirx.Min, least=True)

    def most(self, a: Scalar, b: Scalar) -> Scalar:
        return self._extreme(a, b, tirx.Max, least=False)

    def equal(self, a: Scalar, b: Scalar) -> Scalar:
        a, b = self._alike(a, b)
        if self.extents.equal(a, b):
            return True
        return False if self.extents.differ(a, b) else tirx.EQ(_expr(a), _expr(b))

    def less(self, a: Scalar, b: Scalar) -> Scalar:
        a, b = self._alike(a, b)
        if self.extents.at_least(a, b):
            return False
        return True if self.extents.at_least(b, self._normal(a + 1)) else tirx.LT(_expr(a), _expr(b))

    def negate(self, a: Scalar) -> Scalar:
        """The opposite of a boolean."""
        return not a if isinstance(a, bool) else tirx.Not(a)

    def both(self, a: Scalar, b: Scalar) -> Scalar:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, bool):
                return other if one else False
        return tirx.And(a, b)

    def choose(self, condition: Scalar, a: Scalar, b: Scalar) -> Scalar:
        if isinstance(condition, bool):
            return a if condition else b
        if isinstance(a, Ratio) or isinstance(b, Ratio):
            raise NotKnown
        if isinstance(a, bool):
            raise NotKnown
        return a if self.extents.equal(a, b) else tirx.Select(condition, _expr(a), _expr(b))

    def floor(self, a: Scalar) -> Scalar:
        return Ratio(self.extents.floor_div(a.above, a.below))

    def ceil(self, a: Scalar) -> Scalar:
        return Ratio(self.extents.floor_div(self._normal(a.above + (a.below - 1)), a.below))

    def cast(self, a: Scalar, before: str, after: str) -> Scalar:
        if after.startswith("float"):
            if isinstance(a, Ratio):
                return a
            return Ratio(self.cast(a, before, "int64"))
        if isinstance(a, Ratio):
            if not self.extents.at_least(a.above, 0):  # a cast rounds toward zero
                if not isinstance(a.above, int):
                    raise NotKnown
                a = Ratio(math.trunc(Fraction(a.above, a.below)))
            a = self.extents.floor_div(a.above, a.below)
        if after == "bool":
            return a if before == "bool" else self.negate(self.equal(a, 0))
        if before == "bool":
            return int(a) if isinstance(a, bool) else tirx.Select(a, _expr(1), _expr(0))
        if isinstance(a, int):
            return int(np.array(a).astype(after))
        if after not in ("int64", "int32", "uint64", "uint32"):
            raise NotKnown
        return a

    def _extreme(self, a: Scalar, b: Scalar, kind: Callable[..., ir.Expr], *, least: bool) -> Scalar:
        first, second = self._alike(a, b)
        if self.extents.at_least(first, second):
            return b if least else a
        if self.extents.at_least(second, first):
            return a if least else b
        if isinstance(a, Ratio):
            raise NotKnown
        return kind(_expr(a), _expr(b))

    def _alike(self, a: Scalar, b: Scalar) -> tuple[Scalar, Scalar]:
        """Two elements that compare as these do, as integers."""
        if not isinstance(a, Ratio):
            if any(not isinstance(v, bool | int) and str(v.ty.dtype) == "bool" for v in (a, b)):
                raise NotKnown
            return int(a) if isinstance(a, bool) else a, int(b) if isinstance(b, bool) else b
        return self.extents.product([a.above, b.below]), self.extents.product([b.above, a.below])

    def _ratio(self, above: Extent, below: int) -> Ratio:
        common = math.gcd(above, below) if isinstance(above, int) else 1
        return Ratio(above // common if isinstance(above, int) else above, below // common)

    def _normal(self, value: Scalar) -> Scalar:
        return self.extents.normal(value)


def _expr(value: Extent) -> ir.Expr:
    return tirx.IntImm("int64", value) if isinstance(value, int) else value
