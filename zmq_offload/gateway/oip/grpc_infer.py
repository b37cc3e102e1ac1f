"""Inference over gRPC: a message to a call, and outputs to the parts of a message. Pure."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.calls import Buffer, Call, Outputs
from zmq_offload.gateway.catalog import can_exist, unknown
from zmq_offload.gateway.oip.parameters import flag, number, queueing
from zmq_offload.gateway.oip.requested import Requested, check_known, check_requested, classes_of, selected
from zmq_offload.gateway.oip.tensors import bytes_of, check_size, dtype_of, nbytes_of, view
from zmq_offload.gateway.oip.versions import version_of
from zmq_offload.gateway.protobuf.infer_request import CONTENTS, Input, parse
from zmq_offload.gateway.protobuf.infer_response import Output, write_response
from zmq_offload.gateway.protobuf.known_requests import Divided
from zmq_offload.gateway.regions.table import Part, part_of
from zmq_offload.net.grants import Grant
from zmq_offload.protocol import packed
from zmq_offload.protocol.packed import Layout, assemble, layout_for, pack
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import DATATYPES, DType, datatype_of

if TYPE_CHECKING:
    from zmq_offload.gateway.regions.files import Place, SharedMemory

_EMPTY_FINAL = "triton_enable_empty_final_response"
"""Asks for an empty last response of models that give several. Models here give one, which is the last."""

_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""The field of inference.InferTensorContents for each datatype. FP16 has none."""


class Answer(NamedTuple):
    """What the response needs of the request. `outputs` are those asked for; None: all of them."""

    id: str
    outputs: tuple[Requested, ...] | None
    places: Mapping[str, Place] = {}

    @property
    def classified(self) -> bool:
        """Whether an output is returned as classes."""
        return self.outputs is not None and any(output.classes for output in self.outputs)


class _Tensor(NamedTuple):
    """An input apart from raw contents."""

    name: str
    datatype: str
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int
    part: Part | None
    contents: Mapping[str, Array] | None


class _Plan(NamedTuple):
    """All that the rest of a request says."""

    model: str
    version: int | None
    id: str
    priority: int
    timeout: float | None
    tensors: tuple[_Tensor, ...]
    parts: Sequence[Part]
    outputs: tuple[Requested, ...] | None
    rooms: Sequence[Requested]
    raw: Sequence[Buffer]
    layout: Layout | None
    """Of the inputs, if all are raw."""
    raw_sizes: list[int]


def decode(divided: Divided, memory: SharedMemory, grant: Grant) -> tuple[Call, Answer]:
    """The call of a message.

    Raises Malformed for bytes that are no message, and InvalidArgument, which names the tensor that is wrong.
    """
    rest, request_id, raw, large = divided
    plan = (_known_plan if len(rest) <= _SHORT else _plan)(rest)
    if raw is None:
        raw = plan.raw
    layout = plan.layout
    if layout is not None and not large and plan.raw_sizes == [len(data) for data in raw]:
        inputs = assemble(layout, raw)
    else:
        inputs = pack(_inputs(plan, raw, large, memory, grant))
    places: Mapping[str, Place] = {}
    if plan.rooms:
        found = memory.places([output.part for output in plan.rooms if output.part is not None], grant)
        places = {output.name: place for output, place in zip(plan.rooms, found, strict=True)}
    answer = Answer(plan.id if request_id is None else request_id, plan.outputs, places)
    return Call(plan.model, plan.version, inputs, plan.timeout, plan.priority, id=answer.id), answer


def _inputs(
    plan: _Plan,
    raw: Sequence[Buffer],
    large: Mapping[int, Mapping[str, Array]],
    memory: SharedMemory,
    grant: Grant,
) -> dict[str, Array]:
    """Inputs of which some are typed contents or in shared memory, or whose raw bytes do not fit."""
    views = iter(memory.read(plan.parts, grant) if plan.parts else ())
    inputs = {}
    used = 0
    for index, tensor in enumerate(plan.tensors):
        name, datatype, dtype, shape, nbytes, part, contents = tensor
        contents = large.get(index, contents)
        if part is not None:
            inputs[name] = view(name, dtype, shape, next(views))
        elif contents is not None:
            if raw:
                raise InvalidArgument(f"input {name!r} has contents beside raw_input_contents; use one of them")
            inputs[name] = _array_of(tensor, contents)
        elif used == len(raw):
            raise InvalidArgument(f"input {name!r} has no data; add it to raw_input_contents")
        else:
            check_size(name, datatype, shape, nbytes, len(raw[used]))
            inputs[name] = view(name, dtype, shape, raw[used])
            used += 1
    return inputs


_SHORT = 4096
"""The longest rest of which the plan is kept, in bytes: clients must not fill the memory."""


def _plan(rest: bytes) -> _Plan:
    request = parse(rest)
    version = version_of(request.version)
    if not can_exist(request.model):
        raise unknown(request.model)
    flag(request.parameters, _EMPTY_FINAL)
    priority, timeout = queueing({name: value for name, value in request.parameters.items() if name != _EMPTY_FINAL})
    tensors, names = [], set[str]()
    for given in request.inputs:
        if given.name in names:
            raise InvalidArgument(f"two inputs have the name {given.name!r:.80}; names must differ")
        names.add(given.name)
        tensors.append(_tensor(given))
    outputs = []
    for asked in request.outputs:
        part = part_of(asked.name, asked.parameters)
        outputs.append(Requested(asked.name, False, number(asked.parameters, "classification"), part))
    check_requested(outputs)
    layout = None
    if all(tensor.part is None and tensor.contents is None for tensor in tensors):
        layout = layout_for([(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors])
    return _Plan(
        request.model,
        version,
        request.id,
        priority,
        timeout,
        tuple(tensors),
        [tensor.part for tensor in tensors if tensor.part is not None],
        tuple(outputs) or None,
        [output for output in outputs if output.part is not None],
        request.raw,
        layout,
        [tensor.nbytes for tensor in tensors],
    )


_known_plan = functools.lru_cache(256)(_plan)


def _tensor(given: Input) -> _Tensor:
    name, datatype, shape, parameters, contents = given
    part = part_of(name, parameters)
    if part is not None and contents is not None:
        raise InvalidArgument(f"input {name!r:.80} has contents and shared_memory_region; use one of them")
    dtype = dtype_of(name, datatype)
    nbytes = nbytes_of(name, dtype, shape)
    if part is not None:
        check_size(name, datatype, shape, nbytes, part.byte_size)
    if not nbytes:
        view(name, dtype, shape, b"")  # a shape that NumPy refuses
    return _Tensor(name, datatype, dtype, shape, nbytes, part, contents)


def _array_of(tensor: _Tensor, contents: Mapping[str, Array]) -> Array:
    """The values of typed contents. Raises InvalidArgument for those of another datatype, or of another number."""
    name, datatype, dtype, shape, nbytes, _, _ = tensor
    field = _FIELDS.get(datatype)
    if field is None:
        raise InvalidArgument(f"input {name!r} is {datatype}, for which contents have no field; use raw_input_contents")
    for given in contents:
        if given != field:
            raise InvalidArgument(f"input {name!r} is {datatype}, but has {given}; use {field}")
    values = contents.get(field)
    if values is None:
        values = np.empty(0, CONTENTS[field])
    check_size(name, datatype, shape, nbytes, values.size * dtype.itemsize)
    array = values.astype(dtype, copy=False)
    if array.dtype != values.dtype and not (array == values).all():
        raise InvalidArgument(f"input {name!r} has a value in {field} that is not {datatype}")
    return array.reshape(shape)


def encode(outputs: Outputs, answer: Answer, batches: bool = False, final: bool | None = None) -> list[Buffer]:
    """The parts of the response. `batches` says whether dimension 0 of the model's outputs is the batch.

    Raises InvalidArgument for an output that the model does not have, or that cannot be returned as asked.
    """
    tensors = outputs.tensors
    header = tensors.layout.header
    if answer.outputs is None or not any(output.classes or output.part for output in answer.outputs):
        wanted = (_known_raw if len(header) <= _SHORT else _raw)(header, outputs.model, answer.outputs)
        raw = [Output(name, kind, shape, tensors.bytes_of(place)) for name, kind, shape, place in wanted]
        return write_response(outputs.model, outputs.version, answer.id, raw, final)
    given = []
    for output, array in selected(tensors, outputs.model, answer.outputs, False):
        if output.classes:
            shape, texts = classes_of(output.name, array, output.classes, batches)
            data = b"".join([len(text).to_bytes(4, "little") + text for text in texts])
            given.append(Output(output.name, "BYTES", tuple(shape), data))
            continue
        datatype, dtype = _datatype(array.dtype)
        if output.part is not None:
            answer.places[output.name].write((bytes_of(array, dtype),))
            given.append(Output(output.name, datatype, array.shape))
        else:
            given.append(Output(output.name, datatype, array.shape, bytes_of(array, dtype)))
    return write_response(outputs.model, outputs.version, answer.id, given, final)


def _raw(
    header: bytes, model: str, requested: tuple[Requested, ...] | None
) -> list[tuple[str, str, tuple[int, ...], packed.Place]]:
    """Name, datatype, shape and place of the outputs to return. Raises InvalidArgument for one that is unknown."""
    places = {place.name: place for place in packed.described(header).places}
    if requested is not None:
        check_known(model, requested, places)
    names = places if requested is None else [output.name for output in requested]
    return [(name, datatype_of(places[name].dtype), places[name].shape, places[name]) for name in names]


_known_raw = functools.lru_cache(256)(_raw)


@functools.lru_cache(64)
def _datatype(dtype: DType) -> tuple[str, DType]:
    """The datatype of an array, and its dtype on the wire."""
    datatype = datatype_of(dtype)
    return datatype, DATATYPES[datatype]
