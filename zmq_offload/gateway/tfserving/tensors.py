"""TensorFlow's tensors (tensorflow.TensorProto) to arrays. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.calls import Buffer
from zmq_offload.protobuf.messages import pool
from zmq_offload.protobuf.tensorflow import CONTENT, DATATYPES, FIELDS, field_of
from zmq_offload.protocol import limits
from zmq_offload.protocol import tensors as ours
from zmq_offload.protocol.payload import Array

_NAMES = {number: name for name, (_, number) in DATATYPES.items()}

_FILLED = 16 << 20
"""Bytes of a tensor that a few values may fill: a short message must not take much memory."""


class Tensor(NamedTuple):
    """A TensorProto as it was sent. `shape` is None for an unknown rank.

    `values` are the bytes of tensor_content, or an array of the field's values; None if there are none.
    """

    datatype: int
    shape: tuple[int, ...] | None
    field: str
    values: Buffer | Array | None


def array_of(tensor: Tensor, name: str) -> Array:
    """The array of a tensor; a view of its bytes if it has tensor_content. Raises InvalidArgument, with its name."""
    datatype = _NAMES.get(tensor.datatype)
    if datatype is None:
        known = ", ".join(known for known, _ in DATATYPES.values())
        raise InvalidArgument(f"input {name!r:.100} has datatype {_named(tensor.datatype)}; models take {known}")
    dtype, shape = ours.DATATYPES[datatype], tensor.shape
    if shape is None or len(shape) > limits.RANK or not all(0 <= extent < limits.EXTENT for extent in shape):
        given = "of unknown rank" if shape is None else list(shape[: limits.RANK + 1])
        raise InvalidArgument(
            f"input {name!r:.100} has a shape {given}; a tensor has at most {limits.RANK} extents from 0"
        )
    count = math.prod(shape)
    if tensor.field == CONTENT and tensor.values is not None:
        if len(tensor.values) != count * dtype.itemsize:
            raise InvalidArgument(
                f"input {name!r:.100} has {len(tensor.values)} bytes of tensor_content, but {_named(tensor.datatype)} "
                f"of shape {list(shape)} has {count * dtype.itemsize}"
            )
        return _shaped(np.frombuffer(tensor.values, dtype), shape, name)
    values = np.empty(0, FIELDS[field_of(tensor.datatype)].dtype) if tensor.values is None else tensor.values
    assert isinstance(values, np.ndarray)
    if tensor.values is not None and tensor.field != field_of(tensor.datatype):
        raise InvalidArgument(
            f"input {name!r:.100} has values in {tensor.field}; those of {_named(tensor.datatype)} are in "
            f"{field_of(tensor.datatype)} or {CONTENT}"
        )
    if values.size > count:
        raise InvalidArgument(f"input {name!r:.100} has {values.size} values, but its shape {list(shape)} has {count}")
    values = _converted(values, datatype, name)
    if values.size < count:
        values = _filled(values, count, name)
    return _shaped(values, shape, name)


def _named(datatype: int) -> str:
    known = pool().FindEnumTypeByName("tensorflow.DataType").values_by_number.get(datatype)
    return known.name if known else str(datatype)


def _converted(values: Array, datatype: str, name: str) -> Array:
    """Values of a field as those of a narrower datatype."""
    dtype = ours.DATATYPES[datatype]
    if values.dtype == dtype:
        return values
    narrow = values.astype(np.dtype("<u2") if datatype == "FP16" else dtype)
    lost = narrow != values
    if lost.any():
        raise InvalidArgument(f"input {name!r:.100} has the value {values[lost][0]}, which does not fit {datatype}")
    return narrow.view(dtype)


def _filled(values: Array, count: int, name: str) -> Array:
    """As TensorFlow does: the last value stands for all that follow, and no value for zeros."""
    if count * values.dtype.itemsize > _FILLED:
        raise InvalidArgument(
            f"input {name!r:.100} has {values.size} of its {count} values; send all of a tensor beyond {_FILLED} bytes"
        )
    filled = np.full(count, values[-1] if values.size else 0, values.dtype)
    filled[: values.size] = values
    return filled


def _shaped(values: Array, shape: tuple[int, ...], name: str) -> Array:
    try:
        return values.reshape(shape)
    except ValueError:  # an extent of 0 makes no bytes of extents that NumPy cannot multiply
        raise InvalidArgument(f"input {name!r:.100} has a shape {list(shape)}, which is too large") from None
