"""The protocol's JSON: descriptions before tensors in binary, or with the tensors' values as lists of numbers. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from zmq_offload.errors import ProtocolError, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import datatype_of
from zmq_offload.transports.oip.metadata import Metadata, urgency
from zmq_offload.transports.outputs import (
    Output,
    array_of,
    check_count,
    check_lists,
    check_names,
    output_of,
    spec_of,
    widened,
    wrong_size,
)
from zmq_offload.transports.versions import number_of

BINARY = "binary_tensor_data"
"""The extension by which tensors are sent in binary."""

LENGTH = "Inference-Header-Content-Length"
"""The header with the bytes of the JSON, where binary tensors follow it."""


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class _Answer(msgspec.Struct):
    outputs: list[_Tensor]
    model_version: str | int | None = None


class _Metadata(msgspec.Struct):
    inputs: list[_Tensor]
    outputs: list[_Tensor]
    versions: list[str] | None = None


class _Server(msgspec.Struct):
    extensions: list[str] = []


class Answer(NamedTuple):
    """The version and outputs of an answer. An output's values are None if they follow in binary."""

    version: int | None
    outputs: Sequence[tuple[Output, Array | None]]


def infer_request(inputs: Mapping[str, Array], priority: int, seconds: float, binary: bool) -> bytes:
    """The JSON of a request. With `binary`, the bytes of the inputs follow it, in the same order.

    The server hears how much time is left: it can drop a request that is late.
    """
    parameters: dict[str, object] = {"timeout": max(1, int(seconds * 1e6))}
    if binary:
        parameters["binary_data_output"] = True
    if priority:
        parameters["priority"] = urgency(priority)
    tensors = [_described(name, array, binary) for name, array in inputs.items()]
    document = {"inputs": tensors, "parameters": parameters}
    if binary:
        return msgspec.json.encode(document)
    return json.dumps(document, separators=(",", ":")).encode()  # with NaN and infinities


def _described(name: str, array: Array, binary: bool) -> dict[str, object]:
    found = {"name": name, "datatype": datatype_of(array.dtype), "shape": array.shape}
    if binary:
        return found | {"parameters": {"binary_data_size": array.nbytes}}
    return found | {"data": widened(array).ravel().tolist()}


def infer_response(text: bytes | bytearray, most: int) -> Answer:
    """Read the JSON of an answer. Raises ProtocolError, FailedPrecondition and ResourceExhausted."""
    answer = _parsed(text, _Answer)
    outputs = [(output_of(one.name, one.datatype, one.shape, most), one) for one in answer.outputs]
    check_names([output for output, _ in outputs])
    return Answer(number_of(str(answer.model_version)), [(output, _value(output, one)) for output, one in outputs])


def _value(output: Output, tensor: _Tensor) -> Array | None:
    if tensor.data is not None:
        return _array(output, tensor.data)
    size = (tensor.parameters or {}).get("binary_data_size")
    if type(size) is not int:
        raise ProtocolError(f"{output} of the server's answer has neither data nor a binary_data_size")
    if size != output.nbytes:
        raise wrong_size(output, size)
    return None


def _array(output: Output, data: list[Any]) -> Array:
    """The array of a list, or of nested ones, in the order of their numbers."""
    try:
        while data and isinstance(data[0], list):
            data = list(itertools.chain.from_iterable(data))
    except TypeError:
        raise ProtocolError(f"{output} of the server's answer has numbers beside lists") from None
    return array_of(output, data)


def metadata_response(text: bytes | bytearray) -> Metadata:
    """Read a model's metadata. Raises ProtocolError."""
    found = _parsed(text, _Metadata)
    for tensors in (found.inputs, found.outputs):
        check_count(tensors)
    inputs, outputs = (
        [spec_of(one.name, one.datatype, one.shape) for one in tensors] for tensors in (found.inputs, found.outputs)
    )
    return Metadata(found.versions or [], inputs, outputs)


def takes_binary(text: bytes | bytearray) -> bool:
    """Whether a server's metadata has the extension. Raises ProtocolError."""
    return BINARY in _parsed(text, _Server).extensions


def _parsed(text: bytes | bytearray, kind: type[Any]) -> Any:
    """Any JSON, and with NaN and infinities, as servers in Python write it."""
    check_lists(text)
    try:
        return msgspec.json.decode(text, type=kind)
    except (ValueError, RecursionError) as error:
        failure = ProtocolError(f"the server's answer is not as the protocol has it: {one_line(error)}")
    try:
        return msgspec.convert(json.loads(text), kind)
    except (ValueError, RecursionError):
        raise failure from None
