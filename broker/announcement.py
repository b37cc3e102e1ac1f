"""The bodies of a worker's Announce, the models that it serves, and of its Heartbeat. Pure."""

from __future__ import annotations

from msgspec import ValidationError, convert, to_builtins

from broker.state import NO_SETTINGS, Description, GpuUse, Model, Payload, Settings, Wanted
from zmq_offload.errors import InvalidArgument, ProtocolError
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import LATEST, shown
from zmq_offload.protocol.names import NAME_PATTERN
from zmq_offload.protocol.payload import decode_body
from zmq_offload.protocol.tensors import TensorSpec, signature_of


def parse_models(payload: Payload) -> dict[tuple[str, int], Model]:
    """Parse the body of an Announce. Raises ProtocolError.

    The body is an array of maps with `name`, `version`, `inputs`, `outputs` (the tensors' signatures), and maybe
    `max_batch` and `config`.
    """
    body = decode_body(payload, "an Announce")
    if type(body) is not list:
        raise ProtocolError("the body of an Announce is an array of models")
    models = {}
    for entry in body:
        if type(entry) is not dict:
            raise ProtocolError("a model in an Announce is a map")
        name, version = entry.get("name"), entry.get("version")
        if type(name) is not str or not NAME_PATTERN.fullmatch(name):
            raise ProtocolError(f"an announced model's name cannot be {shown(name)}")
        if type(version) is not int or not 0 < version <= limits.VERSION:
            raise ProtocolError(f"announced model {name!r}: its version cannot be {shown(version)}")
        inputs, outputs = (_tensors(name, entry.get(part)) for part in ("inputs", "outputs"))
        signature = signature_of(inputs, outputs)
        description: Description = {
            "name": name,
            "version": version,
            "inputs": [tensor.to_json() for tensor in inputs],
            "outputs": [tensor.to_json() for tensor in outputs],
        }
        if "max_batch" in entry:
            description["max_batch"] = most = entry["max_batch"]
            if type(most) is not int or not 0 < most < limits.EXTENT:
                raise ProtocolError(f"announced model {name!r}: its max_batch cannot be {shown(most)}")
        settings = _settings(name, entry.get("config"))
        if settings != NO_SETTINGS:
            description["config"] = to_builtins(settings)
        models[name, version] = Model(
            description,
            signature,
            (Wanted(name, version), Wanted(name), Wanted(name, LATEST, signature)),
            settings,
        )
    return models


def parse_gpu(payload: Payload) -> GpuUse | None:
    """Parse the body of a Heartbeat that has one. Raises ProtocolError. Keys that are not known are ignored."""
    body = decode_body(payload, "a Heartbeat")
    if type(body) is not dict:
        raise ProtocolError("the body of a Heartbeat is a map")
    try:
        return convert(body.get("gpu"), GpuUse | None)
    except ValidationError as error:
        raise ProtocolError(f"what a Heartbeat tells of a GPU cannot be read: {error}") from None


def _tensors(model: str, value: object) -> list[TensorSpec]:
    if type(value) is not list or len(value) > limits.TENSORS:
        raise ProtocolError(f"announced model {model!r}: inputs and outputs are arrays of tensors")
    try:
        return [TensorSpec.from_json(tensor) for tensor in value]
    except InvalidArgument as error:
        raise ProtocolError(f"announced model {model!r}: {error.message}"[: limits.MESSAGE_CHARS]) from None


def _settings(model: str, value: object) -> Settings:
    if value is None:
        return NO_SETTINGS
    try:
        return convert(value, Settings)
    except ValidationError as error:
        raise ProtocolError(f"announced model {model!r}: its config cannot be read: {error}") from None
