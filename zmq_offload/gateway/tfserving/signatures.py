"""Models as TensorFlow Serving describes them: datatypes, signatures, states. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zmq_offload.errors import FailedPrecondition
from zmq_offload.gateway.catalog import Model
from zmq_offload.protobuf.tensorflow import DATATYPES
from zmq_offload.protocol.tensors import TensorSpec

SIGNATURE = "serving_default"
"""The one signature that models have: TensorFlow's name for what runs if a request names none."""

METHOD = "tensorflow/serving/predict"
SIGNATURE_DEF = "signature_def"


def check_signature_name(name: str) -> None:
    """Raise FailedPrecondition, the code of TensorFlow Serving, unless the name is empty or that of the signature."""
    if name not in ("", SIGNATURE):
        raise FailedPrecondition(f"signature {name!r:.200} is not known; models have {SIGNATURE!r}")


def metadata(model: Model) -> dict[str, object]:
    """The answer to a request for metadata, as protobuf writes GetModelMetadataResponse in JSON: int64 are strings."""
    signature = {
        "inputs": _tensors(model.inputs),
        "outputs": _tensors(model.outputs),
        "method_name": METHOD,
        "defaults": {},
    }
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": str(model.version)},
        "metadata": {SIGNATURE_DEF: {SIGNATURE_DEF: {SIGNATURE: signature}}},
    }


def _tensors(specs: Sequence[TensorSpec]) -> dict[str, object]:
    return {
        spec.name: {
            "dtype": DATATYPES[spec.datatype][0],
            "tensor_shape": {"dim": [{"size": str(d), "name": ""} for d in spec.shape], "unknown_rank": False},
            "name": spec.name,
        }
        for spec in specs
    }


def statuses(models: Iterable[Model]) -> dict[str, object]:
    """The answer to a request for the status of versions. All that are served are available."""
    status = {"error_code": "OK", "error_message": ""}
    return {
        "model_version_status": [
            {"version": str(model.version), "state": "AVAILABLE", "status": status} for model in models
        ]
    }
