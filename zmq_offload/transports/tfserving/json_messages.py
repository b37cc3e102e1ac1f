"""TensorFlow Serving's JSON: nested lists, whose datatypes the model's metadata says. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from zmq_offload.errors import ProtocolError, one_line
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec
from zmq_offload.transports.outputs import array_of, check_count, check_lists, output_of, spec_of, widened
from zmq_offload.transports.tfserving.metadata import SIGNATURE, Status, any_rank, datatype_of, no_signature
from zmq_offload.transports.transport import Served
from zmq_offload.transports.versions import number_of

_Kind = TypeVar("_Kind")


class _Dim(msgspec.Struct):
    size: int | str = 0


class _Shape(msgspec.Struct):
    dim: list[_Dim] = []
    unknown_rank: bool = False


class _Info(msgspec.Struct):
    dtype: str
    tensor_shape: _Shape = msgspec.field(default_factory=_Shape)


class _Signature(msgspec.Struct):
    inputs: dict[str, _Info] = {}
    outputs: dict[str, _Info] = {}


class _Signatures(msgspec.Struct):
    signature_def: dict[str, _Signature]


class _SignatureDef(msgspec.Struct):
    signature_def: _Signatures


class _Spec(msgspec.Struct):
    version: int | str = 0


class _Metadata(msgspec.Struct):
    model_spec: _Spec
    metadata: _SignatureDef


class _Reason(msgspec.Struct):
    error_message: str = ""


class _VersionStatus(msgspec.Struct):
    version: int | str
    state: str
    status: _Reason = msgspec.field(default_factory=_Reason)


class _Statuses(msgspec.Struct):
    model_version_status: list[_VersionStatus]


def predict_request(inputs: Mapping[str, Array]) -> bytes:
    """The body of a request, in the format of columns: that of rows has no scalars.

    Each float has digits enough to be the same again. NaN and infinities are as TensorFlow Serving's JSON has them.
    """
    wide = {name: widened(array) for name, array in inputs.items()}
    document = {"inputs": {name: array.tolist() for name, array in wide.items()}}
    if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in wide.values()):
        return msgspec.json.encode(document)
    return json.dumps(document, separators=(",", ":")).encode()


def predict_response(
    body: bytes | bytearray, specs: Sequence[TensorSpec], most: int, places: Mapping[str, Array] | None
) -> dict[str, Array]:
    """The outputs of an answer; `specs` are those of the model's metadata.

    Raises ProtocolError, FailedPrecondition for a datatype that no bundle has, and ResourceExhausted.
    """
    document = _parsed(body)
    found = document.get("outputs") if isinstance(document, dict) else None
    if found is None:
        raise ProtocolError("the server's answer has no 'outputs'")
    names = ", ".join(spec.name for spec in specs)
    if len(specs) == 1:
        found = {specs[0].name: found}  # a single output has no name
    if not isinstance(found, dict):
        raise ProtocolError(f"the server's answer has one tensor without a name; its metadata has {names}"[:1000])
    if found.keys() != {spec.name for spec in specs}:
        has = ", ".join(found)
        raise ProtocolError(f"the server's answer has the outputs {has[:400]}; its metadata has {names[:400]}")
    return {spec.name: _array(spec, found[spec.name], most, places) for spec in specs}


def _array(spec: TensorSpec, value: object, most: int, places: Mapping[str, Array] | None) -> Array:
    shape, values = _flat(spec.name, value)
    if not values and ANY not in (rest := spec.shape[len(shape) :]):
        shape += rest  # lists without elements cannot say what shape the elements have
    return array_of(output_of(spec.name, spec.datatype, shape, most), values, places)


def _flat(name: str, value: object) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of nested lists, and all that they have. As for the server, the first list at each level decides."""
    shape: tuple[int, ...] = ()
    level: list[Any] = [value]
    while level and isinstance(level[0], list):
        extent = len(level[0])
        if len(shape) > limits.RANK or any(not isinstance(one, list) or len(one) != extent for one in level):
            raise ProtocolError(f"output {name!r:.100} of the server's answer is no tensor: its lists differ in length")
        shape += (extent,)
        level = list(itertools.chain.from_iterable(level))
    return shape, level


def metadata_response(body: bytes | bytearray) -> Served:
    """Read what is said of a version. Raises ProtocolError, and FailedPrecondition for a model that no bundle has."""
    found = _read(body, _Metadata)
    signatures = found.metadata.signature_def.signature_def
    if SIGNATURE not in signatures:
        raise no_signature(signatures)
    inputs, outputs = (_specs(infos) for infos in (signatures[SIGNATURE].inputs, signatures[SIGNATURE].outputs))
    return Served(number_of(str(found.model_spec.version)), inputs, outputs)


def _specs(infos: Mapping[str, _Info]) -> list[TensorSpec]:
    check_count(list(infos))
    return [spec_of(name, datatype_of(info.dtype), _extents(name, info.tensor_shape)) for name, info in infos.items()]


def _extents(name: str, shape: _Shape) -> list[int]:
    if shape.unknown_rank:
        raise any_rank(name)
    try:
        return [int(dim.size) for dim in shape.dim]
    except ValueError:
        raise ProtocolError(f"tensor {name!r:.100} of the server's answer has an extent that is no number") from None


def status_response(body: bytes | bytearray) -> list[Status]:
    """Read the versions of a model and their states. Raises ProtocolError."""
    return [
        Status(str(one.version), one.state, one.status.error_message)
        for one in _read(body, _Statuses).model_version_status
    ]


def _read(body: bytes | bytearray, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the server's answer is not as the protocol has it: {one_line(error)}") from None


def _parsed(body: bytes | bytearray) -> Any:
    """Any JSON, and with NaN and Infinity."""
    check_lists(body)
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the server's answer is not JSON: {one_line(error)}") from None
