"""TensorFlow Serving's gRPC methods over the fabric. Pure.

Outputs are in typed fields (float_val, ...), as TensorFlow Serving has them, unless all inputs with values came as
tensor_content: then the client knows it, and outputs are so, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from zmq_offload.errors import InvalidArgument, OffloadError, Unimplemented
from zmq_offload.gateway.calls import Buffer, Buffers, Call, Cancel, Fabric, Outputs, with_headers
from zmq_offload.gateway.catalog import Catalog, Model
from zmq_offload.gateway.grpc.calls import Context, Methods, Reply, Unary
from zmq_offload.gateway.tfserving.predict_request import PredictRequest, read_predict
from zmq_offload.gateway.tfserving.signatures import METHOD, SIGNATURE, SIGNATURE_DEF, check_signature_name
from zmq_offload.gateway.tfserving.tensors import array_of
from zmq_offload.protobuf.messages import message_class, parse_small_message
from zmq_offload.protobuf.tensorflow import CONTENT, DATATYPES, written
from zmq_offload.protobuf.varints import field, varint
from zmq_offload.protocol.names import check_label
from zmq_offload.protocol.packed import pack
from zmq_offload.protocol.payload import Array

_PREDICTION, _MODEL = "/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/"
_ABSENT = {
    _PREDICTION + "Classify": "models take tensors, not examples; use Predict",
    _PREDICTION + "Regress": "models take tensors, not examples; use Predict",
    _PREDICTION + "MultiInference": "models take tensors, not examples; use Predict",
    _MODEL + "HandleReloadConfigRequest": "workers serve what their model repository has",
    "/tensorflow.serving.SessionService/SessionRun": "a model has one signature; use PredictionService.Predict",
}
"""Methods that are not here -> why."""

_AVAILABLE = 30

_OUTPUT, _KEY, _VALUE, _SPEC = 0x0A, 0x0A, 0x12, 0x12


def methods(fabric: Fabric) -> Methods:
    """All methods of TensorFlow Serving."""
    return {
        _PREDICTION + "Predict": lambda message, context, reply: _predict(fabric, message, context, reply),
        _PREDICTION + "GetModelMetadata": _about(fabric, "GetModelMetadata", _metadata),
        _MODEL + "GetModelStatus": _about(fabric, "GetModelStatus", _statuses),
        **{path: _absent(path, why) for path, why in _ABSENT.items()},
    }


def _absent(path: str, why: str) -> Unary:
    def answer(message: Buffer, context: Context, reply: Reply) -> None:
        reply(Unimplemented(f"{path.rpartition('/')[2]} is not here: {why}"))

    return answer


def _predict(fabric: Fabric, message: Buffer, context: Context, reply: Reply) -> Cancel | None:
    try:
        request = read_predict(message)
        version = _version(request.model, request.version, request.label)
        check_signature_name(request.signature)
        if len(set(request.filter)) != len(request.filter):
            raise InvalidArgument("output_filter names an output twice")
        inputs = pack({name: array_of(tensor, name) for name, tensor in request.inputs.items()})
    except OffloadError as error:
        reply(error)
        return None

    def ended(outputs: Outputs | OffloadError) -> None:
        try:
            reply(outputs if isinstance(outputs, OffloadError) else _response(request, outputs))
        except OffloadError as error:
            reply(error)

    call = Call(request.model, version, inputs, context.timeout, label=request.label)
    call = with_headers(call, context.metadata)
    return fabric.infer(call, context.grant, ended)


def _version(model: str, version: int, label: str) -> int | None:
    """The version that a ModelSpec asks for, if it is a number. Raises InvalidArgument."""
    if not model:
        raise InvalidArgument("model_spec has no name; name a model")
    if label:
        check_label(label)
    return version or None


def _response(request: PredictRequest, outputs: Outputs) -> Buffers:
    tensors = outputs.tensors
    for name in request.filter:
        if name not in tensors:
            has = ", ".join(map(repr, tensors))
            raise InvalidArgument(f"model {outputs.model!r} has no output {name!r:.100}; it has {has}"[:1000])
    fields = [tensor.field for tensor in request.inputs.values() if tensor.values is not None]
    content = bool(fields) and all(name == CONTENT for name in fields)
    parts: list[Buffer] = []
    for name in request.filter or tensors:
        parts += _entry(name, tensors[name], content)
    return [*parts, _spec(outputs.model, outputs.version)]


def _entry(name: str, array: Array, content: bool) -> tuple[bytes, Buffer]:
    """An entry of the map of outputs."""
    head, values = written(array, content)
    inner = field(_KEY, name.encode()) + bytes((_VALUE,)) + varint(len(head) + len(values)) + head
    return bytes((_OUTPUT,)) + varint(len(inner) + len(values)) + inner, values


@functools.lru_cache(256)
def _spec(model: str, version: int) -> bytes:
    """The response's field of the model that ran."""
    spec = message_class("tensorflow.serving.ModelSpec")(name=model, signature_name=SIGNATURE)
    spec.version.value = version
    return field(_SPEC, spec.SerializeToString())


def _about(fabric: Fabric, method: str, answer: Callable[[Any, Catalog], Any]) -> Unary:
    """A method that needs the catalog only."""

    def begin(message: Buffer, context: Context, reply: Reply) -> Cancel | None:
        try:
            request = parse_small_message(f"tensorflow.serving.{method}Request", message)
        except OffloadError as error:
            reply(error)
            return None

        def listed(catalog: Catalog | OffloadError) -> None:
            try:
                if isinstance(catalog, OffloadError):
                    raise catalog
                reply([answer(request, catalog).SerializeToString()])
            except OffloadError as error:
                reply(error)

        return fabric.models(context.grant, listed)

    return begin


def _statuses(request: Any, catalog: Catalog) -> Any:
    spec = request.model_spec
    version = _version(spec.name, spec.version.value, spec.version_label)
    found = catalog.find(spec.name, version, spec.version_label)
    response = message_class("tensorflow.serving.GetModelStatusResponse")()
    everything = version is None and not spec.version_label
    for model in catalog.versions(spec.name) if everything else [found]:
        entry = response.model_version_status.add(version=model.version, state=_AVAILABLE)
        entry.status.SetInParent()
    return response


def _metadata(request: Any, catalog: Catalog) -> Any:
    spec = request.model_spec
    version = _version(spec.name, spec.version.value, spec.version_label)
    model = catalog.find(spec.name, version, spec.version_label)
    if not request.metadata_field:
        raise InvalidArgument(f"the request has no metadata_field; use {SIGNATURE_DEF!r}")
    for name in request.metadata_field:
        if name != SIGNATURE_DEF:
            raise InvalidArgument(f"metadata_field {name!r:.100} is not known; use {SIGNATURE_DEF!r}")
    response = message_class("tensorflow.serving.GetModelMetadataResponse")()
    response.model_spec.name = model.name
    response.model_spec.version.value = model.version
    packed = response.metadata[SIGNATURE_DEF]
    packed.type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    packed.value = _signatures(model).SerializeToString()
    return response


def _signatures(model: Model) -> Any:
    found = message_class("tensorflow.serving.SignatureDefMap")()
    signature = found.signature_def[SIGNATURE]
    signature.method_name = METHOD
    for entries, specs in ((signature.inputs, model.inputs), (signature.outputs, model.outputs)):
        for spec in specs:
            info = entries[spec.name]
            info.name, info.dtype = spec.name, DATATYPES[spec.datatype][1]
            info.tensor_shape.SetInParent()
            for extent in spec.shape:
                info.tensor_shape.dim.add(size=extent)
    return found
