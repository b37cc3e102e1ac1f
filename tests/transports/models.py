"""The models that every server of the contract serves, by name; each behaves as its name says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zmq_offload.errors import Internal, NotFound
from zmq_offload.protocol.tensors import DATATYPES, TensorSpec, check_tensors, datatype_of

Array = np.ndarray[Any, Any]
Specs = tuple[TensorSpec, ...]

_X3, _Y3 = (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),)
_X2, _Y2 = (TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),)
_X4, _Y4 = (TensorSpec("x", "FP32", (4,)),), (TensorSpec("y", "FP32", (4,)),)
_TYPED = tuple(TensorSpec(f"in_{name}", name, (2, 3)) for name in DATATYPES)
_BACK = tuple(TensorSpec(f"out_{name}", name, (2, 3)) for name in DATATYPES)

MODELS: dict[str, dict[int, tuple[Specs, Specs]]] = {
    "double": {1: (_X3, _Y3), 2: (_X3, _Y3)},
    "scalar": {1: ((TensorSpec("x", "FP32", ()),), (TensorSpec("y", "FP32", ()),))},
    "typed": {1: (_TYPED, _BACK)},
    "moved": {1: (_X2, _Y2), 2: (_X4, _Y4)},
    "fails": {1: (_X2, _Y2)},
    "slow": {1: (_X2, _Y2)},
    "wrong-shape": {1: (_X2, _Y2)},
    "wrong-type": {1: (_X2, _Y2)},
    "wrong-name": {1: (_X2, _Y2)},
}
"""Name -> version -> inputs and outputs. The highest version is the latest. `slow` answers never."""


def run(name: str, version: int | None, inputs: Mapping[str, Array]) -> tuple[int, dict[str, Array]]:
    """The version that runs, and its outputs. Raises as a worker does."""
    versions = MODELS.get(name, {})
    number = version or max(versions, default=0)
    if number not in versions:
        raise NotFound(f"model {name!r} version {version} is not served")
    takes, returns = versions[number]
    given = {key: (datatype_of(array.dtype), array.shape) for key, array in inputs.items()}
    check_tensors(takes, given, what=f"model {name!r} version {number}")
    if name == "fails":
        raise Internal("the subgraph failed: division by zero")
    results = [array if name == "typed" else array * np.float32(2) for array in (inputs[spec.name] for spec in takes)]
    outputs = {spec.name: np.asarray(array) for spec, array in zip(returns, results, strict=True)}
    if name == "wrong-shape":
        return number, {"y": np.ones(3, np.float32)}
    if name == "wrong-type":
        return number, {"y": np.ones(2, np.float64)}
    if name == "wrong-name":
        return number, {"z": outputs["y"]}
    return number, outputs
