"""From a request's frames to a result's: decode, check against the signature, execute, encode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from zmq_offload.protocol.payload import Array, decode_tensors, encode_tensors
from zmq_offload.protocol.tensors import check_tensors, datatype_of
from zmq_offload.repository import ModelVersion


class Executor(Protocol):
    """Runs one version of a model."""

    @property
    def model(self) -> ModelVersion: ...

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Outputs in the order of `model.outputs`, of inputs in the order of `model.inputs`, which fit the signature.

        The inputs may be unaligned and read-only and are valid only during the call; the outputs must stay as they are
        for as long as they are referred to.
        """


class Echo:
    """The model `echo`: returns its inputs, whatever they are. For load tests: what it costs is the fabric's cost."""

    model = ModelVersion("echo", 1, (), (), None, "", "")


def describe(executor: Executor | Echo) -> dict[str, Any]:
    """A model's entry in the Announce."""
    model = executor.model
    return {
        "name": model.name,
        "version": model.version,
        "inputs": [tensor.to_json() for tensor in model.inputs],
        "outputs": [tensor.to_json() for tensor in model.outputs],
    }


def execute(executor: Executor | Echo, frames: Sequence[Any]) -> list[Any]:
    """`[header, frame, ...]` of the outputs for those of the inputs.

    Raises InvalidArgument for frames that are no tensors or do not fit the signature (naming the tensor), and what the
    executor raises.
    """
    tensors = decode_tensors(frames)
    if isinstance(executor, Echo):
        return encode_tensors(tensors)
    model = executor.model
    given = {name: (datatype_of(array.dtype), array.shape) for name, array in tensors.items()}
    check_tensors(model.inputs, given, what=f"model {model.name!r} version {model.version}")
    outputs = executor.run([tensors[spec.name] for spec in model.inputs])
    return encode_tensors([(spec.name, array) for spec, array in zip(model.outputs, outputs, strict=True)])
