"""What a call returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_SHOWN = 8
"""Tensors that a `repr` names; a model may have hundreds."""


class Timings(NamedTuple):
    """Where the time of a request went, in seconds.

    `queue`: in the broker until its last dispatch. `compute`: in the worker, from taking it up to having its outputs.
    `broker`: from the broker's accepting it to its sending the result, the former two included. `total`: from the
    call to the result, all included; `total - broker` is the client and the network between client and broker.
    """

    queue: float
    compute: float
    broker: float
    total: float


class Outputs(dict[str, "np.ndarray[Any, Any]"]):
    """The output tensors by name, in the model's order. Which `version` of `model` ran, and the `timings`."""

    model: str
    version: int
    timings: Timings

    def __init__(self, tensors: Any, model: str, version: int, timings: Timings) -> None:
        super().__init__(tensors)
        self.model, self.version, self.timings = model, version, timings

    def __repr__(self) -> str:
        """Names, datatypes, shapes and times; the values are in the arrays."""
        tensors = [described(name, array) for name, array in list(self.items())[:_SHOWN]]
        more = [f"and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        times = ", ".join(f"{name} {seconds * 1e3:.3f} ms" for name, seconds in self.timings._asdict().items())
        return f"<Outputs of {self.model!r} version {self.version}: {', '.join(tensors + more) or 'none'}; {times}>"


def described(name: str, array: np.ndarray[Any, Any]) -> str:
    """A tensor in a few words, as x float32[1, 3]."""
    return f"{name} {array.dtype}{list(array.shape)}"
