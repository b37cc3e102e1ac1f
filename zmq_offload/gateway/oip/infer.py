"""Inference over HTTP: the body of a request to a call, and outputs to the body of a response. Pure.

A body is a JSON object. With the binary tensor extension it is followed by the bytes of tensors, in order; the header
Inference-Header-Content-Length then has the length of the JSON. Inputs view the memory of the body, and large outputs
are sent from the memory of their arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import msgspec

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.calls import Buffer, Call, Outputs
from zmq_offload.gateway.catalog import Model
from zmq_offload.gateway.http.messages import Compression, Response
from zmq_offload.gateway.oip import json_data
from zmq_offload.gateway.oip.metadata import batched
from zmq_offload.gateway.oip.parameters import flag, number, queueing
from zmq_offload.gateway.oip.requested import Requested, check_known, check_requested, classes_of, selected
from zmq_offload.gateway.oip.responses import JSON
from zmq_offload.gateway.oip.tensors import bytes_of, check_size, dtype_of, nbytes_of, view
from zmq_offload.gateway.regions.table import Part, part_of
from zmq_offload.net.grants import Grant
from zmq_offload.protocol import packed
from zmq_offload.protocol.packed import Layout, Packed, assemble, described, layout_for, pack
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, DATATYPES, DType, datatype_of

if TYPE_CHECKING:
    from zmq_offload.gateway.regions.files import Place, SharedMemory

HEAD_LENGTH = "inference-header-content-length"


class Answer(NamedTuple):
    """What the response needs of the request.

    `outputs` are those asked for; None: all of them, as binary data if `binary` says so. `places` are for those that go
    to shared memory.
    """

    id: str | None
    outputs: tuple[Requested, ...] | None
    binary: bool
    places: Mapping[str, Place] = {}

    @property
    def classified(self) -> bool:
        """Whether an output is returned as classes."""
        return self.outputs is not None and any(output.classes for output in self.outputs)


Parameters: TypeAlias = "dict[str, str | int | float | bool | None]"


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters = {}


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class _Head(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] | None = None
    id: str | None = None
    parameters: Parameters = {}


class _ParsedInput(msgspec.Struct):
    """The same from the slower parser, which has parsed the data."""

    name: str
    datatype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    data: Any = msgspec.UNSET
    parameters: Parameters = {}


class _ParsedHead(msgspec.Struct):
    inputs: list[_ParsedInput]
    outputs: list[_Output] | None = None
    id: str | None = None
    parameters: Parameters = {}


class _Tensor(NamedTuple):
    """An input without its bytes: they are at `data` after the JSON, or `data` is JSON or a part of a region."""

    name: str
    datatype: str
    dtype: DType | None
    shape: tuple[int, ...]
    data: int | Part | object


class _Plan(NamedTuple):
    """All that the JSON of a request says."""

    tensors: tuple[_Tensor, ...]
    nbytes: int
    priority: int
    timeout: float | None
    answer: Answer
    layout: Layout | None
    """Of the inputs, if all are binary data."""


def is_raw(head_length: str | None, body: Buffer) -> bool:
    """Whether a body has no JSON, but the bytes of the model's one input."""
    return not len(body) or (head_length is not None and head_length.strip() == "0")


def decode_raw(model: Model, version: int | None, body: Buffer) -> tuple[Call, Answer]:
    """The call of a body without JSON. One extent may be symbolic; beside it the batch is 1. Raises InvalidArgument."""
    if len(model.inputs) != 1:
        raise InvalidArgument(
            f"model {model.name!r} has {len(model.inputs)} inputs; a request without JSON is for models with one"
        )
    spec = model.inputs[0]
    shape = list(spec.shape)
    if shape.count(ANY) > 1 and batched(model):
        shape[0] = 1
    if shape.count(ANY) > 1:
        raise InvalidArgument(f"a request without JSON does not tell the shape of input {spec}; send JSON before it")
    if ANY in shape:
        axis = shape.index(ANY)
        shape[axis] = 1
        row = nbytes_of(spec.name, spec.dtype, shape)
        shape[axis] = len(body) // row if row else 0
    check_size(spec.name, spec.datatype, shape, nbytes_of(spec.name, spec.dtype, shape), len(body))
    inputs = pack({spec.name: view(spec.name, spec.dtype, shape, body)})
    return Call(model.name, version, inputs), Answer(None, None, binary=True)


def decode(
    model: str, version: int | None, head_length: str | None, body: Buffer, memory: SharedMemory, grant: Grant
) -> tuple[Call, Answer]:
    """The call of a body with JSON. Raises InvalidArgument, which names the tensor that is wrong."""
    whole = len(body)
    length = whole if head_length is None else _length(head_length, whole)
    json_data.check_length(length)
    text = memoryview(body)[:length]
    # The JSON before binary tensors is often the same in every request; JSON with data is not.
    plan = _cached_plan(bytes(text)) if length < whole and length <= _SHORT else _plan(text)
    if plan.nbytes != whole - length:
        raise InvalidArgument(f"{whole - length} bytes follow the JSON; its inputs have {plan.nbytes}")
    answer = plan.answer
    inputs = _inputs(plan, length, body, memory, grant) if plan.layout is None else _packed(plan.layout, length, body)
    if answer.outputs and (rooms := [output for output in answer.outputs if output.part is not None]):
        places = memory.places([output.part for output in rooms if output.part is not None], grant)
        answer = answer._replace(places={output.name: place for output, place in zip(rooms, places, strict=True)})
    return Call(model, version, inputs, plan.timeout, plan.priority, id=answer.id or ""), answer


def _packed(layout: Layout, at: int, body: Buffer) -> Packed:
    """The inputs whose bytes follow each other in a body. No arrays are made of them."""
    view = memoryview(body)
    return assemble(layout, [view[at : (at := at + place.stop - place.start)] for place in layout.places])


def _inputs(plan: _Plan, length: int, body: Buffer, memory: SharedMemory, grant: Grant) -> Packed:
    """The inputs of a body, of which some are JSON or in shared memory."""
    parts = [tensor.data for tensor in plan.tensors if isinstance(tensor.data, Part)]
    views = iter(memory.read(parts, grant) if parts else ())
    inputs = {}
    for name, datatype, dtype, shape, data in plan.tensors:
        if dtype is None:
            inputs[name] = json_data.array_of(name, datatype, shape, data)
        elif type(data) is int:
            inputs[name] = view(name, dtype, shape, body, length + data)
        else:
            inputs[name] = view(name, dtype, shape, next(views))
    return pack(inputs)


def _length(text: str, whole: int) -> int:
    if not text.isdecimal() or not text.isascii() or int(text[:20]) > whole:
        raise InvalidArgument(f"Inference-Header-Content-Length is {text!r:.40}; the body has {whole} bytes")
    return int(text)


_SHORT = 2048
"""The longest JSON, or header of outputs, of which is kept what it says, in bytes: it must not fill the memory."""


def _plan(text: bytes | memoryview) -> _Plan:
    given: _Head | _ParsedHead = json_data.loads(text, _Head, _ParsedHead)
    priority, timeout = queueing(given.parameters)
    tensors, names, offset = [], set[str](), 0
    for each in given.inputs:
        if each.name in names:
            raise InvalidArgument(f"two inputs have the name {each.name!r:.80}; names must differ")
        names.add(each.name)
        tensor = _tensor(each, offset)
        tensors.append(tensor)
        if tensor.dtype is not None and type(tensor.data) is int:
            offset += number(each.parameters, "binary_data_size")
    binary = flag(given.parameters, "binary_data_output")
    outputs = None if given.outputs is None else tuple(_requested(each, binary) for each in given.outputs)
    if outputs is not None:
        check_requested(outputs)
    layout = None
    if all(type(tensor.data) is int for tensor in tensors):
        layout = layout_for([(name, dtype, shape) for name, _, dtype, shape, _ in tensors if dtype is not None])
    answer = Answer(given.id or None, outputs or None, binary)
    return _Plan(tuple(tensors), offset, priority, timeout, answer, layout)


_cached_plan = functools.lru_cache(256)(_plan)


def _tensor(given: _Input | _ParsedInput, offset: int) -> _Tensor:
    name, datatype, shape = given.name, given.datatype, tuple(given.shape)
    has_data, has_binary = given.data is not msgspec.UNSET, "binary_data_size" in given.parameters
    part = part_of(name, given.parameters)
    if has_data + has_binary + (part is not None) != 1:
        raise InvalidArgument(
            f"input {name!r:.80} must have one of data, and the parameters binary_data_size and shared_memory_region"
        )
    if has_data:
        return _Tensor(name, datatype, None, shape, given.data)
    dtype = dtype_of(name, datatype)
    nbytes = number(given.parameters, "binary_data_size") if part is None else part.byte_size
    wanted = nbytes_of(name, dtype, shape)
    check_size(name, datatype, shape, wanted, nbytes)
    if not wanted:
        view(name, dtype, shape, b"")  # a shape that NumPy refuses
    return _Tensor(name, datatype, dtype, shape, offset if part is None else part)


def _requested(given: _Output, binary: bool) -> Requested:
    part = part_of(given.name, given.parameters)
    return Requested(
        given.name,
        flag(given.parameters, "binary_data", binary and part is None),
        number(given.parameters, "classification"),
        part,
    )


def encode(outputs: Outputs, answer: Answer, batches: bool = False) -> Response:
    """The response for outputs. `batches` says whether dimension 0 of the model's outputs is the batch.

    Raises InvalidArgument for an output that the model does not have, or that cannot be returned as asked.
    """
    start = b"{" if answer.id is None else b'{"id":%b,' % msgspec.json.encode(answer.id)
    tensors = outputs.tensors
    header = tensors.layout.header
    binary = (_known_binary if len(header) <= _SHORT else _binary)(
        header, outputs.model, outputs.version, answer.outputs, answer.binary
    )
    if binary is not None:
        text, places = binary
        length = len(start) + len(text)
        body: list[Buffer] = [start + text, *[tensors.bytes_of(place) for place in places]]
        return Response(200, body, _binary_headers(length), Compression.ASKING)
    pieces = [start, _beginning(outputs.model, outputs.version)]
    parts: list[Buffer] = []
    separator = b""
    for output, array in selected(tensors, outputs.model, answer.outputs, answer.binary):
        entry, part = _output(output, array, answer, batches)
        pieces += (separator, *entry)
        separator = b","
        if part:
            parts.append(part)
    pieces.append(b"]}")
    length = sum(map(len, pieces))
    head = pieces if length > _JOINED else [b"".join(pieces)]  # large text is not copied again
    if not parts:
        return Response(200, head, (JSON,), Compression.ACCEPTING)
    return Response(200, [*head, *parts], _binary_headers(length), Compression.ASKING)


def _binary_headers(length: int) -> tuple[tuple[str, str], ...]:
    return ("Content-Type", "application/octet-stream"), ("Inference-Header-Content-Length", str(length))


def _binary(
    header: bytes, model: str, version: int, requested: tuple[Requested, ...] | None, binary: bool
) -> tuple[bytes, tuple[packed.Place, ...]] | None:
    """The JSON of a response, without its start, and the places of what follows it; None if not all outputs are binary
    data. Raises InvalidArgument for an output that the model does not have."""
    places = {place.name: place for place in described(header).places}
    if requested is None:
        requested = tuple([Requested(name, binary) for name in places])
    check_known(model, requested, places)
    wanted = [places[output.name] for output in requested]
    given = [place for place in wanted if place.stop > place.start]
    if not given or not all(output.binary and not output.classes and output.part is None for output in requested):
        return None
    entries = [
        b'%b,"parameters":{"binary_data_size":%d}}'
        % (_start(place.name, place.dtype, place.shape)[0], place.stop - place.start)
        for place in wanted
    ]
    return _beginning(model, version) + b",".join(entries) + b"]}", tuple(given)


_known_binary = functools.lru_cache(256)(_binary)


_JOINED = 64 * 1024


def _output(output: Requested, array: Array, answer: Answer, batches: bool) -> tuple[tuple[bytes, ...], Buffer]:
    """An output's JSON object, in pieces, and its binary data, which may be empty."""
    if output.classes:
        shape, texts = classes_of(output.name, array, output.classes, batches)
        start = _entry(output.name, "BYTES", tuple(shape))
        if not output.binary:
            return (start, b',"data":', msgspec.json.encode([text.decode() for text in texts]), b"}"), b""
        part: Buffer = b"".join([len(text).to_bytes(4, "little") + text for text in texts])
    else:
        start, dtype = _start(output.name, array.dtype, array.shape)
        if output.part is not None:
            answer.places[output.name].write((bytes_of(array, dtype),))
            return (start, b"}"), b""  # as Triton: its C++ client takes any parameters for those of binary data
        if not output.binary:
            return (start, b',"data":', json_data.text_of(output.name, array), b"}"), b""
        part = bytes_of(array, dtype)
    return (b'%b,"parameters":{"binary_data_size":%d}}' % (start, len(part)),), part


@functools.lru_cache(256)
def _beginning(model: str, version: int) -> bytes:
    return b'"model_name":%b,"model_version":"%d","outputs":[' % (msgspec.json.encode(model), version)


@functools.lru_cache(256)
def _start(name: str, dtype: DType, shape: tuple[int, ...]) -> tuple[bytes, DType]:
    """An output's JSON object without its data and its end, and the dtype on the wire."""
    datatype = datatype_of(dtype)
    return _entry(name, datatype, shape), DATATYPES[datatype]


def _entry(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return msgspec.json.encode({"name": name, "datatype": datatype, "shape": shape})[:-1]
