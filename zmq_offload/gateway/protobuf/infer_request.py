"""Reads an inference.ModelInferRequest without copying its tensors. Pure.

A message is divided in two: tensors, which are viewed or decoded by NumPy, and the rest, which protobuf parses.
Protobuf would copy each tensor, twice. Requests for a model have the same rest, so what came of it is used again; the
id of a request is not part of it.

Whatever does not look as clients write it (unknown fields, numbers that are not packed, ...) is left to protobuf as it
is, so that its rules hold: which bytes are no message, and which of two values counts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from zmq_offload.errors import Internal, InvalidArgument
from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.protobuf.messages import message_class
from zmq_offload.gateway.protobuf.varints import field, length_at, packed
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import DType


class Input(NamedTuple):
    """An input. `contents` has its typed values by the field's name; None if it has no contents."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Mapping[str, object]
    contents: Mapping[str, Array] | None


class Requested(NamedTuple):
    """An output that is asked for."""

    name: str
    parameters: Mapping[str, object]


class InferRequest(NamedTuple):
    """A request. A parameter is a bool, int, str or float, or None if it has no value. `raw` views the message."""

    model: str
    version: str
    id: str
    parameters: Mapping[str, object]
    inputs: tuple[Input, ...]
    outputs: tuple[Requested, ...]
    raw: list[Buffer]


CONTENTS: dict[str, DType] = {
    "bool_contents": np.dtype("?"),
    "int_contents": np.dtype("<i4"),
    "int64_contents": np.dtype("<i8"),
    "uint_contents": np.dtype("<u4"),
    "uint64_contents": np.dtype("<u8"),
    "fp32_contents": np.dtype("<f4"),
    "fp64_contents": np.dtype("<f8"),
}
"""The fields of inference.InferTensorContents that are numbers, in the order of their field numbers from 1."""

_ID, _INPUT, _RAW = 0x1A, 0x2A, 0x3A
"""Tags in the request: the field's number times 8, plus 2 for a value with a length."""
_TEXTS, _CONTENTS = (0x0A, 0x12, 0x1A, 0x22), 0x2A
"""Tags in an input: name, datatype, shape and parameters; contents."""
_PACKED = {number << 3 | 2: (name, dtype) for number, (name, dtype) in enumerate(CONTENTS.items(), 1)}
_WITH_LENGTH, _WIRE_TYPE = 2, 7

_FIELDS = 1024
"""Fields that are looked at one by one. Protobuf reads a message with more, which takes it less time."""
_SMALL = 4096
"""Bytes of an input that protobuf reads with its contents, and of a rest that is kept for the next request."""
_LARGEST = 16 << 20
"""Bytes that are left to protobuf, whose objects can take 20 times their size."""
_HEADS = 256
"""Rests that are kept."""


class _Unusual(Exception):
    """A message is not as clients write it."""


def read_request(data: Buffer) -> InferRequest:
    """Read a message.

    Raises Internal for bytes that protobuf refuses, as servers of gRPC do, and InvalidArgument for a message that is
    beyond a limit.
    """
    try:
        head, request_id, raw, large = _divided(data)
    except (_Unusual, IndexError, ValueError):
        _check_rest(len(data))
        return _parsed(bytes(data))
    _check_rest(len(head))
    if len(raw) > limits.TENSORS:
        raise InvalidArgument(f"{len(raw)} raw_input_contents in one request; the limit is {limits.TENSORS}")
    request = (_known if len(head) <= _SMALL else _parsed)(head)
    inputs = request.inputs
    if large:
        inputs = tuple(
            given._replace(contents=large[index]) if index in large else given for index, given in enumerate(inputs)
        )
    return request._replace(id=request_id, inputs=inputs, raw=raw)


def _divided(data: Buffer) -> tuple[bytes, str, list[Buffer], dict[int, Mapping[str, Array]]]:
    """The rest, the id, the raw tensors, and typed contents by the index of their inputs."""
    view, size = memoryview(data), len(data)
    rest: list[Buffer] = []
    request_id, raw, large = "", list[Buffer](), dict[int, Mapping[str, Array]]()
    inputs = at = kept = 0
    for _ in range(_FIELDS):
        if at == size:
            break
        tag, length, start = data[at], data[at + 1], at + 2
        if length >= 0x80:
            length, start = length_at(data, at + 1)
        end = start + length
        if end > size or tag >= 0x80 or tag & _WIRE_TYPE != _WITH_LENGTH:
            raise _Unusual
        if tag == _RAW:
            raw.append(view[start:end])
        elif tag == _ID:
            request_id = str(view[start:end], "utf-8")
        elif tag == _INPUT and length > _SMALL:
            described, large[inputs] = _divided_input(view[start:end])
            rest += view[kept:at], field(_INPUT, described)
            kept, inputs, at = end, inputs + 1, end
            continue
        else:
            inputs += tag == _INPUT
            at = end
            continue
        rest.append(view[kept:at])
        kept = at = end
    else:
        raise _Unusual
    return b"".join((*rest, view[kept:])), request_id, raw, large


def _divided_input(view: memoryview) -> tuple[bytes, Mapping[str, Array]]:
    """The fields of an input apart from its contents, and these. They have to be one packed field of numbers."""
    rest, contents, at = list[Buffer](), None, 0
    for _ in range(_FIELDS):
        if at == len(view):
            break
        tag = view[at]
        length, start = length_at(view, at + 1)
        end = start + length
        if end > len(view):
            raise _Unusual
        if tag == _CONTENTS and contents is None:
            contents = view[start:end]
        elif tag in _TEXTS:
            rest.append(view[at:end])
        else:
            raise _Unusual
        at = end
    if at != len(view) or not contents or contents[0] not in _PACKED:
        raise _Unusual
    name, dtype = _PACKED[contents[0]]
    length, start = length_at(contents, 1)
    if not length or start + length != len(contents):
        raise _Unusual
    numbers = contents[start:]
    return b"".join(rest), {name: np.frombuffer(numbers, dtype) if dtype.kind == "f" else packed(numbers, dtype)}


def _check_rest(size: int) -> None:
    """Raise InvalidArgument for more bytes than protobuf parses."""
    if size > _LARGEST:
        raise InvalidArgument(
            f"{size} bytes beside raw tensors and packed contents in one request; the limit is {_LARGEST}"
        )


def _parsed(text: bytes) -> InferRequest:
    """A message as protobuf reads it."""
    try:
        message = message_class("inference.ModelInferRequest").FromString(text)
    except DecodeError:
        raise Internal("the bytes are not an inference.ModelInferRequest; send what protobuf serializes") from None
    for what in ("inputs", "outputs", "raw_input_contents"):
        if len(getattr(message, what)) > limits.TENSORS:
            raise InvalidArgument(f"{len(getattr(message, what))} {what} in one request; the limit is {limits.TENSORS}")
    return InferRequest(
        message.model_name,
        message.model_version,
        message.id,
        _parameters(message),
        tuple(_input(given) for given in message.inputs),
        tuple(Requested(given.name, _parameters(given)) for given in message.outputs),
        list(message.raw_input_contents),
    )


_known = functools.lru_cache(_HEADS)(_parsed)


def _input(message: Any) -> Input:
    if len(message.shape) > limits.RANK:
        raise InvalidArgument(
            f"input {message.name!r:.80} has {len(message.shape)} dimensions; the limit is {limits.RANK}"
        )
    contents = _contents(message.contents) if message.HasField("contents") else None
    return Input(message.name, message.datatype, tuple(message.shape), _parameters(message), contents)


def _contents(message: Any) -> Mapping[str, Array]:
    """The fields that have values. Those of bytes are not read: no model takes them."""
    given: Iterable[tuple[str, Any]] = ((name, getattr(message, name)) for name in CONTENTS)
    found = {name: np.fromiter(values, CONTENTS[name], len(values)) for name, values in given if values}
    return found | ({"bytes_contents": np.empty(0, "V")} if message.bytes_contents else {})


def _parameters(message: Any) -> Mapping[str, object]:
    found = {}
    for name, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, choice) if choice else None
    return found
