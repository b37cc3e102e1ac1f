"""Messages of TensorFlow Serving's gRPC services, written and read without protobuf. Pure.

Tensors are sent as tensor_content, which are their bytes. Servers answer so too, or with values in the field of the
datatype. The numbers of fields are those of protobuf/definitions/tensorflow.proto and tensorflow_serving.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from zmq_offload.errors import ProtocolError
from zmq_offload.protobuf import varints
from zmq_offload.protobuf.tensorflow import DATATYPES, FIELDS, field_of, written
from zmq_offload.protobuf.varints import field, varint
from zmq_offload.protobuf.wire import BYTES, VARINT, fields, signed, text, view
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array, Buffer
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.transports.outputs import (
    Output,
    check_count,
    check_names,
    output_of,
    place_for,
    reading,
    spec_of,
    wrong_size,
)
from zmq_offload.transports.tfserving.metadata import SIGNATURE, SIGNATURE_DEF, Status, any_rank, no_signature
from zmq_offload.transports.transport import Served
from zmq_offload.transports.versions import number_of

_FIRST, _SECOND, _THIRD, _FOURTH = (number << 3 | BYTES for number in (1, 2, 3, 4))
_KEY, _VALUE = _FIRST, _SECOND
"""Tags of fields with a length, and of an entry of a map."""

_NAMES = {number: name for name, (_, number) in DATATYPES.items()} | {7: "STRING", 14: "BFLOAT16"}
"""TensorFlow's number of a datatype -> our name; and names of two that no bundle has, for messages."""

_STATES = {10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}


class Answer(NamedTuple):
    """The version and outputs of a PredictResponse."""

    version: int | None
    outputs: dict[str, Array]


class _Shape(NamedTuple):
    extents: list[int]
    unknown: bool


# --- requests -------------------------------------------------------------------------------------------------


def predict_request(model: str, version: int | None, label: str, inputs: Mapping[str, Array]) -> bytes:
    """A PredictRequest."""
    parts: list[Buffer] = [_for_model(model, version, label)]
    for name, array in inputs.items():
        head, values = written(array, content=True)
        size = len(head) + len(values)
        inner = field(_KEY, name.encode()) + bytes((_VALUE,)) + varint(size)
        parts += [bytes((_SECOND,)) + varint(len(inner) + size) + inner, head, values]
    return b"".join(parts)


def metadata_request(model: str, version: int | None, label: str) -> bytes:
    """A GetModelMetadataRequest."""
    return _for_model(model, version, label) + field(_SECOND, SIGNATURE_DEF.encode())


def status_request(model: str) -> bytes:
    """A GetModelStatusRequest for all versions."""
    return _for_model(model, None, "")


def _for_model(model: str, version: int | None, label: str) -> bytes:
    """The field model_spec. Without version and label it stands for the latest version."""
    spec = field(_FIRST, model.encode())
    if version is not None:
        spec += field(_SECOND, bytes((1 << 3 | VARINT,)) + varint(version))
    elif label:
        spec += field(_FOURTH, label.encode())
    return field(_FIRST, spec)


# --- answers --------------------------------------------------------------------------------------------------


def predict_response(message: bytes, most: int, places: Mapping[str, Array] | None) -> Answer:
    """Read a PredictResponse. Outputs go to the arrays of `places` that fit, and to new ones.

    Raises ProtocolError, FailedPrecondition and ResourceExhausted.
    """
    with reading("tensorflow.serving.PredictResponse"):
        version: int | None = None
        read: list[tuple[Output, Array]] = []
        for tag, value in fields(memoryview(message)):
            if tag == _SECOND:
                version = _version(view(value))
            elif tag == _FIRST:
                name, tensor = _entry(view(value))
                read.append(_tensor(name, tensor, most))
        check_names([output for output, _ in read])
        outputs = {}
        for output, array in read:
            place = outputs[output.name] = place_for(output, places)
            np.copyto(place, array.reshape(output.shape))
        return Answer(version, outputs)


def metadata_response(message: bytes) -> Served:
    """Read a GetModelMetadataResponse. Raises ProtocolError, and FailedPrecondition for a model that no bundle has."""
    with reading("tensorflow.serving.GetModelMetadataResponse"):
        version: int | None = None
        signatures: dict[str, memoryview] = {}
        for tag, value in fields(memoryview(message)):
            if tag == _FIRST:
                version = _version(view(value))
            elif tag == _SECOND:
                key, packed = _entry(view(value))
                if key == SIGNATURE_DEF:
                    found = _last(packed, _SECOND)
                    signatures |= dict(_entry(view(one)) for tag, one in fields(found) if tag == _FIRST)
        if SIGNATURE not in signatures:
            raise no_signature(signatures)
        inputs, outputs = list[TensorSpec](), list[TensorSpec]()
        for tag, value in fields(signatures[SIGNATURE]):
            if tag in (_FIRST, _SECOND):
                specs = inputs if tag == _FIRST else outputs
                specs.append(_spec(*_entry(view(value))))
                check_count(specs)
        return Served(version, inputs, outputs)


def status_response(message: bytes) -> list[Status]:
    """Read a GetModelStatusResponse. Raises ProtocolError."""
    with reading("tensorflow.serving.GetModelStatusResponse"):
        return [_status(view(value)) for tag, value in fields(memoryview(message)) if tag == _FIRST]


def _status(message: memoryview) -> Status:
    version, state, why = 0, "UNKNOWN", ""
    for tag, value in fields(message):
        if tag == 1 << 3 | VARINT:
            assert isinstance(value, int)
            version = signed(value)
        elif tag == 2 << 3 | VARINT:
            assert isinstance(value, int)
            state = _STATES.get(value, state)
        elif tag == _THIRD:
            why = text(_last(view(value), _SECOND))
    return Status(str(version), state, why)


def _version(spec: memoryview) -> int | None:
    """The version of a ModelSpec."""
    found = 0
    for tag, value in fields(_last(spec, _SECOND)):
        if tag == 1 << 3 | VARINT:
            assert isinstance(value, int)
            found = value
    return number_of(str(found))


def _last(message: memoryview, wanted: int) -> memoryview:
    """The bytes of a field; none if it is missing."""
    found = memoryview(b"")
    for tag, value in fields(message):
        if tag == wanted:
            found = view(value)
    return found


def _entry(message: memoryview) -> tuple[str, memoryview]:
    """The key and value of a map's entry."""
    key = ""
    value = memoryview(b"")
    for tag, one in fields(message):
        if tag == _KEY:
            key = text(one)
        elif tag == _VALUE:
            value = view(one)
    return key, value


def _spec(name: str, info: memoryview) -> TensorSpec:
    """A TensorInfo."""
    datatype, shape = 0, _Shape([], False)
    for tag, value in fields(info):
        if tag == 2 << 3 | VARINT:
            assert isinstance(value, int)
            datatype = value
        elif tag == _THIRD:
            shape = _shape(view(value))
    if shape.unknown:
        raise any_rank(name)
    return spec_of(name, _named(datatype), shape.extents)


def _named(datatype: int) -> str:
    return _NAMES.get(datatype, f"number{datatype}")


def _shape(message: memoryview) -> _Shape:
    """A TensorShapeProto."""
    extents, unknown = list[int](), False
    for tag, value in fields(message):
        if tag == _SECOND:
            if len(extents) > limits.RANK:
                raise ValueError(f"a shape has more than {limits.RANK} extents")
            extents.append(0)
            for inner, size in fields(view(value)):
                if inner == 1 << 3 | VARINT:
                    assert isinstance(size, int)
                    extents[-1] = signed(size)
        elif tag == 3 << 3 | VARINT:
            unknown = bool(value)
    return _Shape(extents, unknown)


def _tensor(name: str, message: memoryview, most: int) -> tuple[Output, Array]:
    """A TensorProto: an output, and its values."""
    datatype, shape, content = 0, _Shape([], False), memoryview(b"")
    values: dict[int, list[memoryview]] = {}
    for tag, value in fields(message):
        if tag == 1 << 3 | VARINT:
            assert isinstance(value, int)
            datatype = value
        elif tag == _SECOND:
            shape = _shape(view(value))
        elif tag == _FOURTH:
            content = view(value)
        elif tag & 7 == BYTES:
            values.setdefault(tag >> 3, []).append(view(value))
    if shape.unknown:
        raise ProtocolError(f"output {name!r:.100} of the server's answer has no shape")
    output = output_of(name, _named(datatype), shape.extents, most)
    if content:
        if len(content) != output.nbytes:
            raise wrong_size(output, len(content))
        return output, np.frombuffer(content, output.dtype)
    number, dtype = FIELDS[field_of(datatype)]
    chunks = values.get(number, [])
    if dtype.kind == "f":
        counts = [len(chunk) // dtype.itemsize for chunk in chunks]
    else:
        counts = [int(np.count_nonzero(np.frombuffer(chunk, np.uint8) < 0x80)) for chunk in chunks]
    if sum(counts) * output.dtype.itemsize != output.nbytes:
        raise wrong_size(output, sum(counts) * output.dtype.itemsize)
    return output, _converted(output, [np.empty(0, dtype), *(_numbers(chunk, dtype) for chunk in chunks)])


def _numbers(chunk: memoryview, dtype: np.dtype[np.generic]) -> Array:
    return np.frombuffer(chunk, dtype) if dtype.kind == "f" else varints.packed(chunk, dtype)


def _converted(output: Output, chunks: list[Array]) -> Array:
    """Values of a field as those of a narrower datatype."""
    values = np.concatenate(chunks)
    if values.dtype == output.dtype:
        return values
    narrow = values.astype(np.dtype("<u2") if output.datatype == "FP16" else output.dtype)
    if (narrow != values).any():
        raise ProtocolError(f"{output} has values that do not fit its datatype in the server's answer")
    return narrow.view(output.dtype)
