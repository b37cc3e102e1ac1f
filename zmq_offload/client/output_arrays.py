"""Arrays that a caller gives for outputs: checked before the model runs, as far as possible, and filled after it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from zmq_offload.client.results import Outputs
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, Latest, TensorSpec, datatype_of

_OVERLAP_WORK = 10_000
"""Bound for `numpy.shares_memory`, which may otherwise take exponential time."""


def check_output_arrays(outputs: Mapping[str, Array]) -> None:
    """Raise InvalidArgument for arrays that could not be filled, whatever the model returns.

    An array may also be an input: inputs have been read when outputs are written. Two outputs must not share memory.
    """
    if type(outputs) is not dict and not isinstance(outputs, Mapping):
        raise InvalidArgument(f"outputs is a {type(outputs).__name__}; use a mapping of names to arrays")
    for name, place in outputs.items():
        if not isinstance(name, str):
            raise InvalidArgument(f"output name {name!r} is not a string")
        if not isinstance(place, np.ndarray):
            raise InvalidArgument(f"the array for output {name!r} is a {type(place).__name__}; use a NumPy array")
        if not place.flags.writeable:
            raise InvalidArgument(f"the array for output {name!r} is read-only")
        if not place.flags.contiguous and _folded(place):
            raise InvalidArgument(f"elements of the array for output {name!r} share memory")
        try:
            datatype_of(place.dtype)
        except InvalidArgument as error:
            raise InvalidArgument(f"the array for output {name!r}: {error.message}") from None
    for (one, first), (other, second) in itertools.combinations(outputs.items(), 2):
        if np.may_share_memory(first, second) and _overlap(first, second):
            raise InvalidArgument(f"the arrays for outputs {one!r} and {other!r} share memory; give each its own")


def _folded(place: Array) -> bool:
    """Whether elements of a view may share memory, as in a view made by `as_strided`."""
    reach = place.itemsize
    for stride, extent in sorted((abs(s), n) for s, n in zip(place.strides, place.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (extent - 1)
    return False


def _overlap(first: Array, second: Array) -> bool:
    try:
        return np.shares_memory(first, second, max_work=_OVERLAP_WORK)  # type: ignore[arg-type,unused-ignore]  # NumPy 2.4
    except np.exceptions.TooHardError:
        return False


class Signatures:
    """The outputs of models, as far as known from the broker's list and from earlier replies.

    A reply proves nothing for the next call: there may be a new version by then, and some models return their inputs.
    """

    def __init__(self) -> None:
        self._announced: dict[tuple[str, int | Latest | None], list[dict[str, TensorSpec]]] = {}
        self._answered: dict[tuple[str, int | Latest | None], dict[str, np.dtype[Any]]] = {}

    def announced(self, models: Iterable[Mapping[str, Any]]) -> None:
        """Take the broker's list of models."""
        self._announced.clear()
        self._answered.clear()
        for model in models:
            try:
                specs = {spec.name: spec for spec in map(TensorSpec.from_json, model["outputs"])}
                name, version = model["name"], model["version"]
            except (InvalidArgument, KeyError, TypeError):
                continue  # the broker is newer
            if specs:  # an echo worker, which returns its inputs, announces none
                self._announced[name, version] = [specs]
                self._announced.setdefault((name, None), []).append(specs)

    def answered(self, outputs: Outputs, version: int | Latest | None) -> None:
        """Note the outputs of a call for `version` (None for the latest)."""
        key = outputs.model, version
        if key not in self._answered:
            self._answered[key] = {name: array.dtype for name, array in outputs.items()}

    def mismatch(self, model: str, version: int | Latest | None, outputs: Mapping[str, Array]) -> str | None:
        """Say which array does not fit, or return None. If only a reply says so, ask the broker before believing it.

        For the latest version, one version that fits is enough: two may be served while workers change to a new one.
        """
        key = model, version
        if (versions := self._announced.get(key)) is not None:
            mismatches = [_misfit(model, specs, outputs) for specs in versions]
            return None if None in mismatches else mismatches[-1]
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
    """Copy output tensors into the caller's arrays. Raises InvalidArgument naming the first that does not fit; then
    none is filled."""
    if outputs.keys() != into.keys():
        raise InvalidArgument(_names_differ(outputs.model, outputs, into))
    for name, array in outputs.items():
        place = into[name]
        if (place.shape, place.dtype) != (array.shape, array.dtype):
            raise InvalidArgument(_differs(outputs.model, name, f"{array.dtype}{list(array.shape)}", place))
    for name, array in outputs.items():
        place = into[name]
        if array is not place:
            np.copyto(place, array)
            outputs[name] = place


def _names_differ(model: str, returned: Iterable[str], given: Iterable[str]) -> str:
    return f"model {model!r} returns {', '.join(returned)}; the arrays are for {', '.join(given) or 'none'}"


def _differs(model: str, name: str, returned: str, place: Array) -> str:
    return f"output {name!r} of model {model!r} is {returned}; the array for it is {place.dtype}{list(place.shape)}"
