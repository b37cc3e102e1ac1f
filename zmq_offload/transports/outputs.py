"""What a server says of a tensor, checked before any memory is taken for it; and values of JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from zmq_offload.errors import (
    FailedPrecondition,
    OffloadError,
    ProtocolError,
    ResourceExhausted,
    one_line,
    printable,
)
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, DATATYPES, DType, TensorSpec

LARGEST = 1 << 20
"""Bytes of an answer that has no tensors."""

LARGEST_JSON = 16 << 20
"""Bytes of an answer with values in JSON. Their objects can take ten times as many."""

_LISTS = 1 << 20
"""Lists and objects of an answer in JSON. An empty one takes 30 times the memory of its text."""

_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {float, int}}
"""Kind of a dtype -> what its values are in Python."""


class Output(NamedTuple):
    """An output that fits all limits."""

    name: str
    datatype: str
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int

    def __str__(self) -> str:
        return f"output {self.name!r} {self.datatype}{list(self.shape)}"


def spec_of(name: str, datatype: str, shape: Sequence[int]) -> TensorSpec:
    """A tensor of a model's metadata. Its datatype may be one that no bundle has. Raises ProtocolError."""
    _check(name, datatype, shape, ANY)
    return TensorSpec(name, datatype, tuple(shape))


def output_of(name: str, datatype: str, shape: Sequence[int], most: int) -> Output:
    """An output of an answer. Raises ProtocolError, FailedPrecondition for a datatype that no bundle has, and
    ResourceExhausted for more than `most` bytes."""
    _check(name, datatype, shape, 0)
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise FailedPrecondition(f"output {name!r} has datatype {datatype}; a bundle takes {', '.join(DATATYPES)}")
    nbytes = math.prod(shape) * dtype.itemsize
    found = Output(name, datatype, dtype, tuple(shape), nbytes)
    if nbytes > most:
        raise ResourceExhausted(f"{found} has {nbytes} bytes; at most max_frame_bytes={most} are taken")
    return found


def check_count(tensors: Sequence[object]) -> None:
    """Raise ProtocolError for more tensors than a model has."""
    if len(tensors) > limits.TENSORS:
        raise ProtocolError(f"the server describes {len(tensors)} tensors; a model has at most {limits.TENSORS}")


def check_names(outputs: Sequence[Output]) -> None:
    """Raise ProtocolError for a name that two outputs have, or for too many outputs."""
    if len(outputs) > limits.TENSORS:
        raise ProtocolError(f"the server's answer has {len(outputs)} outputs; at most {limits.TENSORS} are taken")
    if len({output.name for output in outputs}) < len(outputs):
        raise ProtocolError("two outputs in the server's answer have the same name")


def place_for(output: Output, given: Mapping[str, Array] | None) -> Array:
    """The array that an output is written to: the caller's, if it can be written to in one piece, or a new one.

    Raises ProtocolError for a shape that NumPy cannot have.
    """
    place = None if given is None else given.get(output.name)
    if place is not None and (place.shape, place.dtype) == (output.shape, output.dtype) and place.flags.c_contiguous:
        return place
    try:
        return np.empty(output.shape, output.dtype)
    except (ValueError, MemoryError):  # an extent of 0 makes no bytes of extents that NumPy cannot multiply
        raise ProtocolError(f"{output} has a shape that is too large") from None


def check_lists(body: bytes | bytearray) -> None:
    """Raise ResourceExhausted for JSON whose lists and objects would take much memory, before it is read."""
    count = body.count(b"[") + body.count(b"{")
    if count > _LISTS:
        raise ResourceExhausted(
            f"the server's answer has {count} lists and objects of JSON; at most {_LISTS} are taken"
        )


def widened(array: Array) -> Array:
    """An array for JSON: each float with digits enough to be the same again."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(invalid="ignore"):  # NumPy warns of some NaNs
        return array.astype(np.float64)


def array_of(output: Output, values: list[Any], places: Mapping[str, Array] | None = None) -> Array:
    """The array of an output whose values are objects of JSON, in their order. Raises ProtocolError."""
    if len(values) * output.dtype.itemsize != output.nbytes:
        raise wrong_size(output, len(values) * output.dtype.itemsize)
    if not set(map(type, values)) <= _TYPES[output.dtype.kind]:
        raise ProtocolError(f"{output} of the server's answer has values of another datatype")
    found = _fitting(output.dtype, values)
    if found is None:
        raise ProtocolError(f"{output} of the server's answer has values that do not fit its datatype")
    place = place_for(output, places)
    np.copyto(place, found.reshape(output.shape))
    return place


def _fitting(dtype: DType, values: list[Any]) -> Array | None:
    """The array of values of the right types; None if one is beyond what the datatype can have."""
    if dtype.kind in "iu" and values:
        kind = np.iinfo(dtype)
        if not (kind.min <= min(values) and max(values) <= kind.max):
            return None
    if dtype.kind != "f":
        return np.array(values, dtype)
    try:
        exact = np.array(values, np.float64)
    except OverflowError:
        return None
    with np.errstate(over="ignore"):
        found: Array = exact.astype(dtype)
    return None if (np.isinf(found) & np.isfinite(exact)).any() else found


@contextmanager
def reading(name: str) -> Iterator[None]:
    """In the body, bytes that cannot be read as a message of this name are an error of the server's."""
    try:
        yield
    except OffloadError:
        raise
    except ValueError as error:
        raise ProtocolError(f"the server's answer is no {name}: {one_line(error)}") from None


def bytes_of(array: Array) -> memoryview:
    """The memory of an array that is contiguous. A view without elements cannot be had of all."""
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


def wrong_size(output: Output, given: int) -> ProtocolError:
    """The error for an output with too few or too many bytes."""
    return ProtocolError(f"{output} of the server's answer has {given} bytes; it must have {output.nbytes}")


def _check(name: str, datatype: str, shape: Sequence[int], least: int) -> None:
    if not 0 < len(name.encode(errors="replace")) <= limits.NAME_BYTES or printable(name) != name:
        raise ProtocolError(f"the server's answer has a tensor with the name {name[:100]!r}")
    if not datatype.isalnum() or len(datatype) > _DATATYPE:
        raise ProtocolError(f"tensor {name!r} of the server's answer has datatype {datatype[:100]!r}")
    if len(shape) > limits.RANK or any(not least <= extent < limits.EXTENT for extent in shape):
        raise ProtocolError(f"tensor {name!r} of the server's answer has shape {str(list(shape[: limits.RANK]))[:300]}")


_DATATYPE = 32
"""Characters of a datatype's name."""
