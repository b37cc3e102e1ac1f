"""Reads a tensorflow.serving.PredictRequest without copying its tensors. Pure.

As in `zmq_offload.gateway.protobuf.infer_request`, a message is divided: the values of its tensors are viewed, or
decoded by NumPy, and protobuf parses the rest. Requests for a model have the same rest, so what came of it is used
again.

Whatever does not look as clients write it is left to protobuf as it is, so that its rules hold.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.tfserving.tensors import Tensor
from zmq_offload.protobuf.messages import parse_message
from zmq_offload.protobuf.tensorflow import CONTENT, FIELDS, field_of
from zmq_offload.protobuf.varints import field, length_at, packed
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array


class PredictRequest(NamedTuple):
    """A request. `version` 0 is none; `filter` has the outputs that are asked for, or none for all."""

    model: str
    version: int
    label: str
    signature: str
    filter: tuple[str, ...]
    inputs: dict[str, Tensor]


_INPUT, _KEY, _VALUE = 0x12, 0x0A, 0x12
_DTYPE, _SHAPE, _VERSION_NUMBER, _CONTENT = 0x08, 0x12, 0x18, 0x22
_WITH_LENGTH, _WIRE_TYPE = 2, 7
_TAGS = {number << 3 | _WITH_LENGTH: name for name, (number, _) in FIELDS.items()} | {_CONTENT: CONTENT}

_COUNT = 1024
"""Fields that are looked at one by one. Protobuf reads a message with more, which takes it less time."""
_SMALL = 4096
"""Bytes of a rest that is kept for the next request."""
_LARGEST = 16 << 20
"""Bytes that are left to protobuf, whose objects can take 20 times their size."""
_KEPT = 256
"""Rests that are kept."""


class _Unusual(Exception):
    """A message is not as clients write it."""


def read_predict(data: Buffer) -> PredictRequest:
    """Read a message.

    Raises Internal for bytes that protobuf refuses, as servers of gRPC do, and InvalidArgument for a message that is
    beyond a limit.
    """
    try:
        rest, inputs = _divided(data)
    except (_Unusual, IndexError, ValueError):
        return _parsed(bytes(_bounded(data)))
    return (_known if len(rest) <= _SMALL else _parsed)(rest)._replace(inputs=inputs)


def _divided(data: Buffer) -> tuple[bytes, dict[str, Tensor]]:
    """The fields apart from the inputs, and these."""
    view, size, at = memoryview(data), len(data), 0
    rest, inputs = list[Buffer](), dict[str, Tensor]()
    for _ in range(_COUNT):
        if at == size:
            break
        tag = data[at]
        length, start = length_at(data, at + 1)
        end = start + length
        if end > size or tag >= 0x80 or tag & _WIRE_TYPE != _WITH_LENGTH:
            raise _Unusual
        if tag == _INPUT:
            name, tensor = _divided_input(view[start:end])
            inputs[name] = tensor
        else:
            rest.append(view[at:end])
        at = end
    else:
        raise _Unusual
    return _bounded(b"".join(rest)), _counted(inputs)


def _divided_input(view: memoryview) -> tuple[str, Tensor]:
    """An entry of the map of inputs. It has one key and one value."""
    length, start = length_at(view, 1)
    value = start + length
    length, start = length_at(view, value + 1)
    if view[0] != _KEY or view[value] != _VALUE or start + length != len(view):
        raise _Unusual
    rest, name, values = _divided_tensor(view[start:])
    entry = bytes(view[:value]) + field(_VALUE, rest)
    key, tensor = (_known_entry if len(entry) <= _SMALL else _entry)(entry)
    return key, tensor if values is None else tensor._replace(field=name, values=values)


def _divided_tensor(view: memoryview) -> tuple[bytes, str, Buffer | Array | None]:
    """The fields of a tensor apart from its values, the name of the field that has these, and these."""
    rest, found, name, at = list[Buffer](), None, "", 0
    for _ in range(_COUNT):
        if at == len(view):
            break
        tag, start = length_at(view, at)
        length, end = length_at(view, start)
        if tag in (_DTYPE, _VERSION_NUMBER):  # a number, no length
            rest.append(view[at:end])
        elif end + length > len(view):
            raise _Unusual
        elif tag == _SHAPE:
            end += length
            rest.append(view[at:end])
        elif tag in _TAGS and found is None:
            name, found = _TAGS[tag], view[end : end + length]
            end += length
        else:
            raise _Unusual
        at = end
    else:
        raise _Unusual
    if not found:
        return b"".join(rest), "", None
    if name == CONTENT:
        return b"".join(rest), name, found
    dtype = FIELDS[name].dtype
    return b"".join(rest), name, np.frombuffer(found, dtype) if dtype.kind == "f" else packed(found, dtype)


def _entry(entry: bytes) -> tuple[str, Tensor]:
    """An input without its values."""
    ((name, tensor),) = _parsed(field(_INPUT, entry)).inputs.items()
    return name, tensor


_known_entry = functools.lru_cache(_KEPT)(_entry)


def _bounded(rest: Any) -> Any:
    """Bytes that protobuf parses. Raises InvalidArgument for too many."""
    if len(rest) > _LARGEST:
        raise InvalidArgument(f"{len(rest)} bytes beside packed tensors in one request; the limit is {_LARGEST}")
    return rest


def _counted(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    if len(inputs) > limits.TENSORS:
        raise InvalidArgument(f"{len(inputs)} inputs in one request; the limit is {limits.TENSORS}")
    return inputs


def _parsed(text: bytes) -> PredictRequest:
    """A message as protobuf reads it."""
    message = parse_message("tensorflow.serving.PredictRequest", text)
    spec = message.model_spec
    return PredictRequest(
        spec.name,
        spec.version.value,
        spec.version_label,
        spec.signature_name,
        tuple(message.output_filter),
        _counted({name: _tensor(tensor) for name, tensor in message.inputs.items()}),
    )


_known = functools.lru_cache(_KEPT)(_parsed)


def _tensor(message: Any) -> Tensor:
    shape = None if message.tensor_shape.unknown_rank else tuple(dim.size for dim in message.tensor_shape.dim)
    if message.tensor_content:
        return Tensor(message.dtype, shape, CONTENT, message.tensor_content)
    usual = field_of(message.dtype)
    for name in (usual, *FIELDS):  # TensorFlow reads the datatype's field, whatever else there is
        values = getattr(message, name)
        if values:
            return Tensor(message.dtype, shape, name, np.fromiter(values, FIELDS[name].dtype, len(values)))
    return Tensor(message.dtype, shape, "", None)
