"""The value of a call: output tensors and timings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from zmq_offload.protocol.payload import Array

_SHOWN = 8
"""Tensors that a `repr` names; a model may have hundreds."""


class Timings(NamedTuple):
    """Where the time of a request went, in seconds.

    Attributes
    ----------
    queue : float
        In the broker, until the request was given to the worker that replied.
    compute : float
        In the worker, from taking the request to having its outputs.
    broker : float
        From the broker's receiving the request to its sending the reply; includes `queue` and `compute`.
    total : float
        From the call to its return. ``total - broker`` is spent in the client and on the network between client and
        broker.

    Examples
    --------
    >>> outputs = client.infer("ocr", {"image": image})
    >>> outputs.timings.total - outputs.timings.broker
    """

    queue: float
    compute: float
    broker: float
    total: float


class Outputs(dict[str, Array]):
    """The output arrays of a call by name, in the model's order.

    Parameters
    ----------
    tensors : mapping of str to numpy.ndarray
        The arrays.
    model : str
        Name of the model that ran.
    version : int
        Version that ran, from 1.
    timings : Timings
        Where the time went.

    Attributes
    ----------
    model, version, timings
        As given.

    Examples
    --------
    >>> outputs = client.infer("ocr", {"image": image})
    >>> outputs["text"], outputs.version, outputs.timings.compute
    """

    model: str
    version: int
    timings: Timings

    def __init__(self, tensors: Mapping[str, Array], model: str, version: int, timings: Timings) -> None:
        super().__init__(tensors)
        self.model, self.version, self.timings = model, version, timings

    def __repr__(self) -> str:
        """Names, datatypes, shapes and times, without values."""
        tensors = [described(name, array) for name, array in list(self.items())[:_SHOWN]]
        more = [f"and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        times = ", ".join(f"{name} {seconds * 1e3:.3f} ms" for name, seconds in self.timings._asdict().items())
        return f"<Outputs of {self.model!r} version {self.version}: {', '.join(tensors + more) or 'none'}; {times}>"


def described(name: str, array: Array) -> str:
    """A tensor in a few words, such as "x float32[1, 3]"."""
    return f"{name} {array.dtype}{list(array.shape)}"
