"""Writes an inference.ModelInferResponse around the memory of its tensors. Pure.

What describes the outputs is the same in all answers of a model, and made once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from zmq_offload.gateway.calls import Buffer
from zmq_offload.protobuf.messages import message_class
from zmq_offload.protobuf.varints import field, varint
from zmq_offload.protocol import limits

_ID = 0x1A
_ERROR, _RESPONSE = 0x0A, 0x12
"""Tags: the field's number times 8, plus 2 for a value with a length."""

_KEPT = 256
"""Descriptions that are kept."""


class Output(NamedTuple):
    """An output of a response. One in shared memory has no data; it has its place among the others' all the same."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer = b""


def write_response(
    model: str, version: int, request_id: str, outputs: Sequence[Output], final: bool | None = None
) -> list[Buffer]:
    """The parts of a message. `final` is the parameter `triton_final_response` of an answer in a stream."""
    shown = tuple([(name, datatype, shape) for name, datatype, shape, _ in outputs])
    small: list[Buffer] = [_described(model, version, shown)]
    if request_id:
        small.append(field(_ID, request_id.encode()))
    if final is not None:
        small.append(_FINAL[final])
    parts: list[Buffer] = []
    for output in outputs:
        small.append(b"\x32" + varint(len(output.data)))
        if len(output.data) <= limits.PACKED_BYTES:  # a copy costs less than another part to send
            small.append(output.data)
        else:
            parts += b"".join(small), output.data
            small = []
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
def _described(model: str, version: int, outputs: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """The start of a message: model, version and descriptions of its outputs."""
    message = message_class("inference.ModelInferResponse")(model_name=model, model_version=str(version))
    for name, datatype, shape in outputs:
        message.outputs.add(name=name, datatype=datatype, shape=shape)
    return bytes(message.SerializeToString())


def _final(value: bool) -> bytes:
    message = message_class("inference.ModelInferResponse")()
    message.parameters["triton_final_response"].bool_param = value
    return bytes(message.SerializeToString())


_FINAL = {value: _final(value) for value in (False, True)}
