"""Messages of inference.GRPCInferenceService, written and read without protobuf. Pure.

Objects of protobuf copy a large tensor twice, and the package is one that a device need not have. Tensors are sent raw:
beside what describes them, as their bytes. The numbers of fields are those of protobuf/definitions/grpc_service.proto.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zmq_offload.errors import ProtocolError
from zmq_offload.protobuf import varints
from zmq_offload.protobuf.varints import field, varint
from zmq_offload.protobuf.wire import BYTES, VARINT, fields, integers, text, view
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import DType, TensorSpec, datatype_of
from zmq_offload.transports.oip.metadata import Metadata, urgency
from zmq_offload.transports.outputs import (
    Output,
    bytes_of,
    check_count,
    check_names,
    output_of,
    place_for,
    reading,
    spec_of,
    wrong_size,
)
from zmq_offload.transports.versions import number_of

_KEPT = 256
"""Descriptions of requests that are kept: those for a model with the same shapes have the same."""

_RAW_INPUT, _INPUT = 0x3A, 0x2A
_PRIORITY = 0x22, field(0x0A, b"priority")
_UINT64_PARAM = 0x28
"""Tags of a ModelInferRequest, and what is in it for a priority."""

_VERSION, _OUTPUT, _RAW_OUTPUT = 2 << 3 | BYTES, 5 << 3 | BYTES, 6 << 3 | BYTES
"""Tags of a ModelInferResponse."""

_NAME, _DATATYPE, _SHAPE, _CONTENTS = 1 << 3 | BYTES, 2 << 3 | BYTES, 3 << 3, 5 << 3 | BYTES
"""Tags of a tensor. A shape has either of two wire types."""

_VERSIONS, _INPUTS, _OUTPUTS = 2 << 3 | BYTES, 4 << 3 | BYTES, 5 << 3 | BYTES
"""Tags of a ModelMetadataResponse."""

_TYPED: dict[int, DType] = {
    1 << 3 | BYTES: np.dtype("?"),
    2 << 3 | BYTES: np.dtype("<i4"),
    3 << 3 | BYTES: np.dtype("<i8"),
    4 << 3 | BYTES: np.dtype("<u4"),
    5 << 3 | BYTES: np.dtype("<u8"),
    6 << 3 | BYTES: np.dtype("<f4"),
    7 << 3 | BYTES: np.dtype("<f8"),
}
"""Tag of a packed field of InferTensorContents -> what its numbers are."""


class Answer(NamedTuple):
    """The version and outputs of a ModelInferResponse."""

    version: int | None
    outputs: dict[str, Array]


def infer_request(model: str, version: int | None, inputs: Mapping[str, Array], priority: int) -> bytes:
    """A ModelInferRequest."""
    described = tuple([(name, datatype_of(array.dtype), array.shape) for name, array in inputs.items()])
    parts: list[bytes | memoryview] = [_described(model, version, priority, described)]
    for array in inputs.values():
        parts.append(bytes((_RAW_INPUT,)) + varint(array.nbytes))
        parts.append(bytes_of(array))
    return b"".join(parts)


@functools.lru_cache(_KEPT)
def _described(
    model: str, version: int | None, priority: int, inputs: Sequence[tuple[str, str, tuple[int, ...]]]
) -> bytes:
    """The start of a request: all but its tensors' bytes."""
    parts = [model_request(model, version)]
    if priority:
        tag, key = _PRIORITY
        parameter = field(0x12, bytes((_UINT64_PARAM,)) + varint(urgency(priority)))
        parts.append(field(tag, key + parameter))
    for name, datatype, shape in inputs:
        extents = b"".join(map(varint, shape))
        tensor = field(0x0A, name.encode()) + field(0x12, datatype.encode())
        parts.append(field(_INPUT, tensor + field(0x1A, extents) if shape else tensor))
    return b"".join(parts)


def model_request(model: str, version: int | None) -> bytes:
    """A ModelMetadataRequest; the first fields of other requests for a model are the same."""
    name = field(0x0A, model.encode())
    return name if version is None else name + field(0x12, str(version).encode())


def infer_response(message: bytes, most: int, places: Mapping[str, Array] | None) -> Answer:
    """Read a ModelInferResponse. Outputs go to the arrays of `places` that fit, and to new ones.

    Raises ProtocolError, FailedPrecondition and ResourceExhausted.
    """
    with reading("inference.ModelInferResponse"):
        return _infer_response(memoryview(message), most, places)


def _infer_response(message: memoryview, most: int, places: Mapping[str, Array] | None) -> Answer:
    version = ""
    tensors: list[tuple[Output, list[memoryview]]] = []
    raw: list[memoryview] = []
    for tag, value in fields(message):
        if tag == _VERSION:
            version = text(value)
        elif tag == _OUTPUT:
            name, datatype, shape, contents = _tensor(view(value))
            tensors.append((output_of(name, datatype, shape, most), contents))
        elif tag == _RAW_OUTPUT:
            raw.append(view(value))
    check_names([output for output, _ in tensors])
    if raw and len(raw) != len(tensors):
        raise ProtocolError(f"the server's answer has {len(tensors)} outputs and the bytes of {len(raw)}")
    values = [
        _raw(output, raw[index]) if raw else _typed(output, contents)
        for index, (output, contents) in enumerate(tensors)
    ]
    outputs = {}
    for (output, _), array in zip(tensors, values, strict=True):
        place = outputs[output.name] = place_for(output, places)
        np.copyto(place, array.reshape(output.shape))
    return Answer(number_of(version), outputs)


def _raw(output: Output, given: memoryview) -> Array:
    if len(given) != output.nbytes:
        raise wrong_size(output, len(given))
    return np.frombuffer(given, output.dtype)


def _typed(output: Output, contents: Sequence[memoryview]) -> Array:
    """The values of a server that does not send them raw. They have to be packed, as proto3 has them."""
    chunks = []
    for part in contents:
        for tag, value in fields(part):
            dtype = _TYPED.get(tag)
            if dtype is None or dtype.kind != output.dtype.kind:
                raise ProtocolError(f"{output} has values of another datatype in the server's answer")
            data = view(value)
            given = np.frombuffer(data, np.uint8)
            count = len(data) // dtype.itemsize if dtype.kind == "f" else int(np.count_nonzero(given < 0x80))
            if count * output.dtype.itemsize > output.nbytes:
                raise wrong_size(output, count * output.dtype.itemsize)
            chunks.append(np.frombuffer(data, dtype) if dtype.kind == "f" else varints.packed(data, dtype))
    values = np.concatenate(chunks) if chunks else np.empty(0, output.dtype)
    with np.errstate(over="ignore"):
        found = values.astype(output.dtype)
    if found.nbytes != output.nbytes:
        raise wrong_size(output, found.nbytes)
    if output.dtype.kind != "f" and (found != values).any():
        raise ProtocolError(f"{output} has values that do not fit its datatype in the server's answer")
    return found


def metadata_response(message: bytes) -> Metadata:
    """Read a ModelMetadataResponse. Raises ProtocolError."""
    versions, inputs, outputs = list[str](), list[TensorSpec](), list[TensorSpec]()
    with reading("inference.ModelMetadataResponse"):
        for tag, value in fields(memoryview(message)):
            if tag == _VERSIONS:
                versions.append(text(value))
            elif tag in (_INPUTS, _OUTPUTS):
                found = inputs if tag == _INPUTS else outputs
                found.append(spec_of(*_tensor(view(value))[:3]))
                check_count(found)
    return Metadata(versions, inputs, outputs)


def is_ready(message: bytes) -> bool:
    """Read a ServerReadyResponse. Raises ProtocolError."""
    ready = False
    with reading("inference.ServerReadyResponse"):
        for tag, value in fields(memoryview(message)):
            if tag == 1 << 3 | VARINT:
                ready = bool(value)
    return ready


def _tensor(message: memoryview) -> tuple[str, str, list[int], list[memoryview]]:
    """Name, datatype, shape and contents."""
    name = datatype = ""
    shape, contents = list[int](), list[memoryview]()
    for tag, value in fields(message):
        if tag == _NAME:
            name = text(value)
        elif tag == _DATATYPE:
            datatype = text(value)
        elif tag in (_SHAPE | BYTES, _SHAPE | VARINT):
            shape += integers(value, limits.RANK)
        elif tag == _CONTENTS:
            contents.append(view(value))
    return name, datatype, shape, contents
