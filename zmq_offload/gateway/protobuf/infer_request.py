"""Reads an inference.ModelInferRequest without copying its tensors. Pure.

A message is divided in two: tensors, which are viewed or decoded by NumPy, and the rest, which protobuf parses.
Protobuf would copy each tensor, twice. Requests for a model have the same rest, so what came of it can be used again;
the id of a request is not part of it.

Whatever does not look as clients write it (unknown fields, numbers that are not packed, ...) is left to protobuf as it
is, so that its rules hold: which bytes are no message, and which of two values counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.protobuf.known_requests import Divided, divide_as_before, remember
from zmq_offload.protobuf.messages import parse_message
from zmq_offload.protobuf.varints import field, length_at, packed
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
    """What protobuf reads. A parameter is a bool, int, str or float, or None if it has no value."""

    model: str
    version: str
    id: str
    parameters: Mapping[str, object]
    inputs: tuple[Input, ...]
    outputs: tuple[Requested, ...]
    raw: Sequence[Buffer]


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
"""Bytes of an input that protobuf reads with its contents."""
_PARAMETERS = 1024
"""Parameters of a request, and of each of its tensors."""
_LARGEST = 16 << 20
"""Bytes that are left to protobuf, whose objects can take 20 times their size."""


class _Unusual(Exception):
    """A message is not as clients write it."""


def divide(data: Buffer) -> Divided:
    """Take a message apart. Raises InvalidArgument for one that is beyond a limit."""
    if (known := divide_as_before(data)) is not None:
        return known
    try:
        divided = _divided(data)
    except (_Unusual, IndexError, ValueError):
        divided = Divided(bytes(data), None, None, {})
    if len(divided.rest) > _LARGEST:
        raise InvalidArgument(
            f"{len(divided.rest)} bytes beside raw tensors and packed contents in one request; the limit is {_LARGEST}"
        )
    if divided.raw is not None:
        _check_count("raw_input_contents", len(divided.raw))
        remember(data, divided)
    return divided


def _divided(data: Buffer) -> Divided:
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
    return Divided(b"".join((*rest, view[kept:])), request_id, raw, large)


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


def parse(rest: bytes) -> InferRequest:
    """What a message, or what is left of it, says.

    Raises Malformed for bytes that protobuf refuses, and InvalidArgument for a message that is beyond a limit.
    """
    message = parse_message("inference.ModelInferRequest", rest)
    for what in ("inputs", "outputs", "raw_input_contents"):
        _check_count(what, len(getattr(message, what)))
    return InferRequest(
        message.model_name,
        message.model_version,
        message.id,
        _parameters(message),
        tuple(_input(given) for given in message.inputs),
        tuple(Requested(given.name, _parameters(given)) for given in message.outputs),
        list(message.raw_input_contents),
    )


def _check_count(what: str, count: int) -> None:
    if count > limits.TENSORS:
        raise InvalidArgument(f"{count} {what} in one request; the limit is {limits.TENSORS}")


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
    if len(message.parameters) > _PARAMETERS:
        raise InvalidArgument(f"{len(message.parameters)} parameters in one place; the limit is {_PARAMETERS}")
    found = {}
    for name, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, choice) if choice else None
    return found
