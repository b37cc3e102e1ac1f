"""Writes an inference.ModelInferResponse around the memory of its tensors. Pure.

What describes the outputs is the same in all answers of a model, and made once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.protobuf.messages import message_class
from zmq_offload.gateway.protobuf.varints import field, varint
from zmq_offload.gateway.sharedmemory.regions import Part
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import DATATYPES, DType, datatype_of

_ID = 0x1A
_ERROR, _RESPONSE = 0x0A, 0x12
"""Tags: the field's number times 8, plus 2 for a value with a length."""

_KEPT = 256
"""Descriptions that are kept."""


class Output(NamedTuple):
    """An output of a response. With a `part` of shared memory, that has its elements, and the message has not."""

    name: str
    array: Array
    part: Part | None = None


def write_response(
    model: str, version: int, request_id: str, outputs: Sequence[Output], final: bool | None = None
) -> list[Buffer]:
    """The parts of a message. `final` is the parameter `triton_final_response` of an answer in a stream."""
    described, dtypes = _described(
        model, version, tuple([(name, array.dtype, array.shape, part) for name, array, part in outputs])
    )
    small = [described]
    if request_id:
        small.append(field(_ID, request_id.encode()))
    if final is not None:
        small.append(_FINAL[final])
    parts: list[Buffer] = []
    for (_, array, part), dtype in zip(outputs, dtypes, strict=True):
        if part is not None:
            continue
        small.append(b"\x32" + varint(array.nbytes))
        if array.nbytes <= limits.PACKED_BYTES:  # a copy costs less than another part to send
            small.append(array.astype(dtype, copy=False).tobytes())
        else:
            parts += b"".join(small), np.ascontiguousarray(array, dtype).data.cast("B")
            small.clear()
    if small:
        parts.append(b"".join(small))
    return parts


def write_answer(response: Sequence[Buffer]) -> list[Buffer]:
    """The parts of an inference.ModelStreamInferResponse with a response."""
    return [b"\x12" + varint(sum(map(len, response))), *response]


def write_fault(text: str, request_id: str) -> list[Buffer]:
    """An inference.ModelStreamInferResponse with an error message. It says in its response which request failed."""
    return [field(_ERROR, text.encode(errors="replace")) + field(_RESPONSE, field(_ID, request_id.encode()))]


@functools.lru_cache(_KEPT)
def _described(
    model: str, version: int, outputs: tuple[tuple[str, DType, tuple[int, ...], Part | None], ...]
) -> tuple[bytes, list[DType]]:
    """The start of a message: model, version, descriptions of its outputs; and each output's dtype on the wire."""
    message = message_class("inference.ModelInferResponse")(model_name=model, model_version=str(version))
    dtypes = []
    for name, dtype, shape, part in outputs:
        datatype = datatype_of(dtype)
        output = message.outputs.add(name=name, datatype=datatype, shape=shape)
        for parameter, value in part.parameters().items() if part else ():
            if isinstance(value, str):
                output.parameters[parameter].string_param = value
            else:
                output.parameters[parameter].int64_param = value
        dtypes.append(DATATYPES[datatype])
    return message.SerializeToString(), dtypes


def _final(value: bool) -> bytes:
    message = message_class("inference.ModelInferResponse")()
    message.parameters["triton_final_response"].bool_param = value
    return bytes(message.SerializeToString())


_FINAL = {value: _final(value) for value in (False, True)}
