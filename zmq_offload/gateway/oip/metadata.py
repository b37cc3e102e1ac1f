"""Metadata of the gateway and of models, and models' configurations, as JSON objects. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zmq_offload.common.version import __version__
from zmq_offload.errors import Unimplemented
from zmq_offload.gateway.catalog import Indexed, Model
from zmq_offload.protocol.tensors import ANY, TensorSpec

PLATFORM = "tvm"
BACKEND = "zmq_offload"

EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""The extensions of the protocol that are always there, apart from "binary_tensor_data", which is HTTP's."""

_LARGEST_BATCH = 2**31 - 1
"""Where the model sets no bound: the largest number of the field."""


def server_metadata(extensions: Iterable[str] = ()) -> dict[str, object]:
    """The name and version of the gateway, and the extensions that it has: `extensions` are added to the usual ones."""
    return {"name": "zmq-offload", "version": __version__, "extensions": sorted({*EXTENSIONS, *extensions})}


def model_metadata(model: Model, versions: Iterable[int]) -> dict[str, object]:
    """The tensors of a model, with the batch, and those of its versions that were asked for."""
    return {
        "name": model.name,
        "versions": [str(version) for version in versions],
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def batched(model: Model) -> bool:
    """Whether dimension 0 of all tensors is the batch, and it may be 1."""
    tensors = (*model.inputs, *model.outputs)
    return all(spec.shape and spec.shape[0] == ANY and spec.multiple(0) == 1 for spec in tensors)


def max_batch_size(model: Model) -> int:
    """The largest batch; 0 if the model has none."""
    if not batched(model):
        return 0
    bounds = [model.max_batch, *[spec.maximum(0) for spec in model.inputs]]
    return min([_LARGEST_BATCH, *[most for most in bounds if most is not None]])


def model_config(model: Model) -> dict[str, object]:
    """The configuration as Triton writes it: shapes are without the batch."""
    most = max_batch_size(model)
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "version_policy": {"all": {}},
        "max_batch_size": most,
        "input": [_config(spec, most) for spec in model.inputs],
        "output": [_config(spec, most) for spec in model.outputs],
        "instance_group": [{"name": model.name, "kind": "KIND_CPU", "count": model.workers}],
        "model_transaction_policy": {"decoupled": False},
    }


def _config(spec: TensorSpec, most: int) -> dict[str, object]:
    return {
        "name": spec.name,
        "data_type": f"TYPE_{spec.datatype}",
        "dims": list(spec.shape[1:] if most else spec.shape),
    }


def index(versions: Iterable[Indexed], ready: bool) -> list[dict[str, str]]:
    """The index of the repository: all versions, or those that are ready."""
    return [
        {"name": entry.name, "version": str(entry.version)}
        | ({"state": "READY"} if entry.ready else {"state": "UNAVAILABLE", "reason": entry.reason})
        for entry in versions
        if entry.ready or not ready
    ]


def check_load(parameters: Mapping[str, object]) -> None:
    """Raise Unimplemented for a load that brings a configuration or files of its own."""
    if parameters:
        raise Unimplemented(
            f"a model cannot be loaded with {', '.join(parameters):.200}; workers load what is in their repository"
        )


TRACING_OFF = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
"""Trace settings as Triton has them where nothing is traced."""

NO_TRACING = Unimplemented("tracing cannot be switched on; this gateway does not trace requests")
NO_LOG_SETTINGS = Unimplemented("log settings are not served here; use the options of `zmq-offload gateway`")
NO_CUDA = Unimplemented("CUDA shared memory is not served here; send tensors in requests, or use system shared memory")
