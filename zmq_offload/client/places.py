"""Arrays that a caller lends for outputs: checked before the model runs, as far as possible, and filled after it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from zmq_offload.client.results import Outputs
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, Latest, TensorSpec, datatype_of

_OVERLAP_WORK: Any = 10_000
"""How hard NumPy tries to find an overlap of two views that lie in the same memory."""


def check_places(outputs: Mapping[str, Array]) -> None:
    """Raises InvalidArgument for `outputs` that could not be filled whatever the model returns.

    Inputs may be among them: they have been read when the outputs are written. Two outputs must not share memory.
    """
    if type(outputs) is not dict and not isinstance(outputs, Mapping):
        raise InvalidArgument(f"outputs are a mapping of names to arrays, not {type(outputs).__name__}")
    for name, place in outputs.items():
        if not isinstance(name, str):
            raise InvalidArgument(f"outputs: {name!r} is not a name; names are texts")
        if not isinstance(place, np.ndarray):
            raise InvalidArgument(f"output {name!r} is to go into a {type(place).__name__}; give a NumPy array")
        if not place.flags.writeable:
            raise InvalidArgument(f"output {name!r}: the array for it is read-only")
        if not place.flags.contiguous and _folded(place):
            raise InvalidArgument(f"output {name!r}: elements of the array for it share memory")
        try:
            datatype_of(place.dtype)
        except InvalidArgument as error:
            raise InvalidArgument(f"output {name!r}: {error.message}") from None
    for (one, first), (other, second) in itertools.combinations(outputs.items(), 2):
        if np.may_share_memory(first, second) and _overlap(first, second):
            raise InvalidArgument(f"outputs {one!r} and {other!r} share memory; each needs an array of its own")


def _folded(place: Array) -> bool:
    """Whether elements of a view, as `as_strided` makes, may lie on each other."""
    reach = place.itemsize
    for stride, extent in sorted((abs(s), n) for s, n in zip(place.strides, place.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (extent - 1)
    return False


def _overlap(first: Array, second: Array) -> bool:
    try:
        return np.shares_memory(first, second, max_work=_OVERLAP_WORK)
    except RuntimeError:  # np.exceptions.TooHardError, which NumPy 1.24 has elsewhere
        return False


class Signatures:
    """What is known of models' outputs: what the broker's list announces, and what came in answers.

    An answer only makes suspicious. A model may have got a new version since, and some return what they are given.
    """

    def __init__(self) -> None:
        self._announced: dict[tuple[str, int | Latest | None], list[dict[str, TensorSpec]]] = {}
        self._answered: dict[tuple[str, int | Latest | None], dict[str, np.dtype[Any]]] = {}

    def announced(self, models: Iterable[Mapping[str, Any]]) -> None:
        """The broker's list of models came in."""
        self._announced.clear()
        self._answered.clear()
        for model in models:
            try:
                specs = {spec.name: spec for spec in map(TensorSpec.from_json, model["outputs"])}
                name, version = model["name"], model["version"]
            except (InvalidArgument, KeyError, TypeError):
                continue  # of a newer broker
            if specs:  # an echo worker returns what it is given
                self._announced[name, version] = [specs]
                self._announced.setdefault((name, None), []).append(specs)

    def answered(self, outputs: Outputs, version: int | Latest | None) -> None:
        """A call for `version` (None for the latest) was answered."""
        key = outputs.model, version
        if key not in self._answered:
            self._answered[key] = {name: array.dtype for name, array in outputs.items()}

    def complaint(self, model: str, version: int | Latest | None, outputs: Mapping[str, Array]) -> str | None:
        """What does not fit, or None. Ask the broker for its list before it is believed.

        For the latest version one that fits is enough: two may be served while workers change from one to the other.
        """
        key = model, version
        if (versions := self._announced.get(key)) is not None:
            complaints = [_misfit(model, specs, outputs) for specs in versions]
            return None if None in complaints else complaints[-1]
        if (dtypes := self._answered.get(key)) is not None:
            if dtypes.keys() != outputs.keys():
                return _names_differ(model, dtypes, outputs)
            for name, dtype in dtypes.items():
                if outputs[name].dtype != dtype:
                    return _differs(model, name, str(dtype), outputs[name])
        return None


def _misfit(model: str, specs: Mapping[str, TensorSpec], outputs: Mapping[str, Array]) -> str | None:
    if specs.keys() != outputs.keys():
        return _names_differ(model, specs, outputs)
    for name, spec in specs.items():
        place = outputs[name]
        if place.dtype != spec.dtype or not spec.fits(place.shape):
            extents = ", ".join("?" if extent == ANY else str(extent) for extent in spec.shape)
            return _differs(model, name, f"{spec.dtype}[{extents}]", place)
    return None


def fill(outputs: Outputs, into: Mapping[str, Array]) -> None:
    """Put output tensors into the caller's arrays. Raises InvalidArgument naming the first that does not fit; then none
    is filled."""
    if outputs.keys() != into.keys():
        raise InvalidArgument(_names_differ(outputs.model, outputs, into))
    for name, array in outputs.items():
        place = into[name]
        if (place.shape, place.dtype) != (array.shape, array.dtype):
            raise InvalidArgument(_differs(outputs.model, name, f"{array.dtype}{list(array.shape)}", place))
    for name, array in outputs.items():
        place = into[name]
        np.copyto(place, array)
        outputs[name] = place


def _names_differ(model: str, returned: Iterable[str], given: Iterable[str]) -> str:
    return f"{model!r} returns {', '.join(returned)}; arrays are for {', '.join(given) or 'none'}"


def _differs(model: str, name: str, returned: str, place: Array) -> str:
    return f"output {name!r} of {model!r} is {returned}, the array for it is {place.dtype}{list(place.shape)}"
