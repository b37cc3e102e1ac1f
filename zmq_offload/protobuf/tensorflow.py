"""TensorFlow's datatypes, and arrays as its tensors (tensorflow.TensorProto), without the package protobuf. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zmq_offload.protobuf.packing import varints
from zmq_offload.protobuf.varints import field, varint
from zmq_offload.protocol import tensors as ours
from zmq_offload.protocol.payload import Array, Buffer
from zmq_offload.protocol.tensors import DType

DATATYPES = {
    "FP32": ("DT_FLOAT", 1),
    "FP64": ("DT_DOUBLE", 2),
    "INT32": ("DT_INT32", 3),
    "UINT8": ("DT_UINT8", 4),
    "INT16": ("DT_INT16", 5),
    "INT8": ("DT_INT8", 6),
    "INT64": ("DT_INT64", 9),
    "BOOL": ("DT_BOOL", 10),
    "UINT16": ("DT_UINT16", 17),
    "FP16": ("DT_HALF", 19),
    "UINT32": ("DT_UINT32", 22),
    "UINT64": ("DT_UINT64", 23),
}
"""Our datatype -> TensorFlow's name and number, from tensorflow/core/framework/types.proto."""


class ValueField(NamedTuple):
    """A field of TensorProto: its number and the dtype of its values."""

    number: int
    dtype: DType


CONTENT = "tensor_content"
FIELDS = {
    "float_val": ValueField(5, np.dtype("<f4")),
    "double_val": ValueField(6, np.dtype("<f8")),
    "int_val": ValueField(7, np.dtype("<i4")),
    "int64_val": ValueField(10, np.dtype("<i8")),
    "bool_val": ValueField(11, np.dtype("?")),
    "half_val": ValueField(13, np.dtype("<i4")),
    "uint32_val": ValueField(16, np.dtype("<u4")),
    "uint64_val": ValueField(17, np.dtype("<u8")),
}
"""The fields that have values of numbers."""

_FIELD_OF = {
    "FP32": "float_val",
    "FP64": "double_val",
    "INT64": "int64_val",
    "BOOL": "bool_val",
    "FP16": "half_val",
    "UINT32": "uint32_val",
    "UINT64": "uint64_val",
}
_DTYPE, _SHAPE, _CONTENT = 0x08, 0x12, 0x22
_WITH_LENGTH = 2
_NAMES = {number: name for name, (_, number) in DATATYPES.items()}


def field_of(datatype: int) -> str:
    """The field that has the values of a datatype."""
    return _FIELD_OF.get(_NAMES.get(datatype, ""), "int_val")


def written(array: Array, content: bool) -> tuple[bytes, Buffer]:
    """A TensorProto of an array in two parts, the second of which is the values."""
    datatype = ours.datatype_of(array.dtype)
    number = DATATYPES[datatype][1]
    dims = b"".join([field(_SHAPE, bytes((_DTYPE,)) + varint(extent) if extent else b"") for extent in array.shape])
    head = bytes((_DTYPE, number)) + field(_SHAPE, dims)
    if not array.size:
        return head, b""
    name = field_of(number)
    if content:
        tag, data = bytes((_CONTENT,)), _bytes(array, datatype)
    else:
        tag, data = varint(FIELDS[name].number << 3 | _WITH_LENGTH), _typed(array, datatype)
    return head + tag + varint(len(data)), data


def _typed(array: Array, datatype: str) -> Buffer:
    """The bytes of a packed field."""
    if datatype in ("FP32", "FP64"):
        return _bytes(array, datatype)
    if datatype == "FP16":
        array = np.frombuffer(_bytes(array, datatype), "<u2")
    return varints(array)


def _bytes(array: Array, datatype: str) -> Buffer:
    return np.ascontiguousarray(array, ours.DATATYPES[datatype]).reshape(-1).view(np.uint8).data
