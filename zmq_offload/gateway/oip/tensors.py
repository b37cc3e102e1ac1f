"""Tensors of a request: datatype, shape and bytes to an array. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.calls import Buffer
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import DATATYPES, DType

_OTHERS = ("BYTES", "BF16")
"""Datatypes of the Open Inference Protocol that no model here takes."""


def dtype_of(name: str, datatype: str) -> DType:
    """The dtype of an input. Raises InvalidArgument for a datatype that no model takes."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        fault = "which no model here takes" if datatype in _OTHERS else "which is not known"
        raise InvalidArgument(
            f"input {name!r} has datatype {datatype!r:.40}, {fault}; use one of {', '.join(DATATYPES)}"
        )
    return dtype


def nbytes_of(name: str, dtype: DType, shape: Sequence[int]) -> int:
    """The bytes of a tensor. Raises InvalidArgument for a shape that a message cannot carry."""
    if len(shape) > limits.RANK:
        raise InvalidArgument(f"input {name!r} has {len(shape)} dimensions; the limit is {limits.RANK}")
    if any(not 0 <= extent < limits.EXTENT for extent in shape):
        raise InvalidArgument(
            f"input {name!r} has shape {list(shape)}; an extent is a number from 0 to {limits.EXTENT - 1}"
        )
    return math.prod(shape) * dtype.itemsize


def view(name: str, dtype: DType, shape: Sequence[int], data: Buffer, offset: int = 0) -> Array:
    """An array of this shape in a buffer's own memory, which has all of its bytes (see `nbytes_of`)."""
    try:
        array: Array = np.ndarray(shape, dtype, data, offset)
    except ValueError:  # an extent of 0 makes no bytes of extents that NumPy cannot multiply
        raise InvalidArgument(f"input {name!r}: {list(shape)} is too large a shape") from None
    return array


def check_size(name: str, datatype: str, shape: Sequence[int], wanted: int, given: int) -> None:
    """Raise InvalidArgument if a tensor was given with too few or too many bytes."""
    if given != wanted:
        raise InvalidArgument(f"input {name!r}: {datatype}{list(shape)} has {wanted} bytes, not {given}")


def bytes_of(array: Array, dtype: DType) -> Buffer:
    """The elements, row-major and little-endian: the array's own memory if it is large and in that form."""
    if array.nbytes <= limits.PACKED_BYTES:  # a copy costs less than another part to send
        return array.astype(dtype, copy=False).tobytes()
    return np.ascontiguousarray(array, dtype).data.cast("B")
