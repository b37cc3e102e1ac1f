"""Affine functions of integer tensors, with limits: what is between them and a `quantize`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.ir import Expr

from zmq_offload.protocol.payload import Array

STEPS = {f"relax.{name}" for name in ("multiply", "divide", "add", "subtract", "maximum", "minimum")}
"""The operators with a constant that are steps of an affine function."""


@dataclass
class Affine:
    """min(max(x * scale + bias, lowest), highest)."""

    scale: Array = field(default_factory=lambda: np.ones(()))
    bias: Array = field(default_factory=lambda: np.zeros(()))
    lowest: Array = field(default_factory=lambda: np.full((), -np.inf))
    highest: Array = field(default_factory=lambda: np.full((), np.inf))

    def times(self, factor: Array) -> None:
        self.scale, self.bias = self.scale * factor, self.bias * factor
        self.lowest, self.highest = self.lowest * factor, self.highest * factor

    def plus(self, term: Array) -> None:
        self.bias, self.lowest, self.highest = self.bias + term, self.lowest + term, self.highest + term

    def limit(self, lowest: Any, highest: Any) -> None:
        self.lowest, self.highest = (np.clip(end, lowest, highest) for end in (self.lowest, self.highest))

    @property
    def limited(self) -> bool:
        return bool(np.isfinite(self.lowest).any() or np.isfinite(self.highest).any())

    def follow(self, name: str, array: Array) -> bool:
        """Add a step; False if it cannot be one of an affine function with limits."""
        array = array.reshape(()) if array.size == 1 else array
        if name in ("relax.multiply", "relax.divide"):
            if not np.isfinite(array).all() or not (array > 0).all():
                return False
            self.times(array if name == "relax.multiply" else 1 / array)
        elif name in ("relax.add", "relax.subtract"):
            if not np.isfinite(array).all():
                return False
            self.plus(array if name == "relax.add" else -array)
        elif np.isnan(array).any():
            return False
        elif name == "relax.maximum":
            self.limit(array, np.inf)
        else:
            self.limit(-np.inf, array)
        return True

    def whole_bias(self) -> Array | None:
        """The bias in units of x, if it is a whole number, as a quantized bias is."""
        if not self.bias.any():
            return None
        units = self.bias / self.scale
        nearest = np.rint(units)
        near = np.abs(units - nearest) <= np.minimum(1e-3 + 1e-6 * np.abs(units), 0.25)
        return nearest.astype(np.int32) if near.all() and np.abs(units).max() < 2**30 else None


@dataclass(frozen=True)
class Found:
    """A function of integers: of one tensor, or of the sum or the product of two functions without limits."""

    of: Expr | Two
    affine: Affine

    def terms(self, factor: Array) -> Iterator[tuple[Expr | Two, Array]]:
        """The tensors of a sum, and by what each is multiplied if the whole is multiplied by `factor`."""
        if isinstance(self.of, Two) and not self.of.product:
            for part in (self.of.left, self.of.right):
                yield from part.terms(self.affine.scale * factor)
        else:
            yield self.of, self.affine.scale * factor

    def offset(self, factor: Array) -> Array:
        """What is added to the terms."""
        own = self.affine.bias * factor
        if isinstance(self.of, Two) and not self.of.product:
            return own + sum(part.offset(self.affine.scale * factor) for part in (self.of.left, self.of.right))
        return np.asarray(own)


@dataclass(frozen=True)
class Two:
    """The sum of two functions, or the product."""

    left: Found
    right: Found
    product: bool
