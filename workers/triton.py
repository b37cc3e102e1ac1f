"""A model of Triton's Python backend: one version of a model, in a virtual machine.

The `model.py` that `zmq-offload export --to triton` writes imports `TritonPythonModel` from here. So a version is
checked, loaded and run by the same code as in a worker. Triton runs each instance of a model in a process of its own.

TVM and NumPy are imported when the model is loaded, and only with TVM's runtime.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from zmq_offload.artifacts.repository import ModelVersion, Repository
from zmq_offload.common.cores import usable_cores
from zmq_offload.common.extras import needs
from zmq_offload.errors import Cancelled, FailedPrecondition, InvalidArgument, OffloadError
from zmq_offload.protocol.names import check_model_name
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import check_tensors, datatype_of
from zmq_offload.runtime import runtime_only

if TYPE_CHECKING:
    from workers.executor import GraphExecutor

Outcome: TypeAlias = "list[Array] | OffloadError"
Triton: TypeAlias = Any
"""Triton's module `triton_python_backend_utils`, which exists in its processes only, and its objects."""


class ModelFolder(Repository):
    """The folder of one model. Triton may have copied it, under another name, out of a store of objects."""

    def path(self, name: str, version: int) -> Path:
        check_model_name(name)
        return self.root / str(version)


class TritonPythonModel:
    """One instance of a model. Triton calls its methods, by these names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version. An error of this is what Triton says about the model that is not ready."""
        self._utils: Triton = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        os.environ["TVM_NUM_THREADS"] = str(threads_of(config))
        runtime_only.use()
        with needs("tvm"):
            from workers.executor import GraphExecutor
        self._executor = GraphExecutor(
            ModelFolder(args["model_repository"]), args["model_name"], int(args["model_version"])
        )
        check_numpy(self._utils)
        self._executor.warm_up()

    def execute(self, requests: Sequence[Triton]) -> list[Triton]:
        """The responses to requests that Triton passes together, in their order. Those whose clients gave up while they
        waited do not run."""
        gone = [request.is_cancelled() for request in requests]
        waiting = [request for request, left in zip(requests, gone, strict=True) if not left]
        given = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in waiting]
        outcomes = iter(run(self._executor, given))
        return [self._response(Cancelled("the client gave up") if left else next(outcomes)) for left in gone]

    def _response(self, outcome: Outcome) -> Triton:
        utils = self._utils
        if isinstance(outcome, OffloadError):
            codes = {InvalidArgument: utils.TritonError.INVALID_ARG, Cancelled: utils.TritonError.CANCELLED}
            code = codes.get(type(outcome), utils.TritonError.INTERNAL)
            return utils.InferenceResponse(error=utils.TritonError(outcome.message, code))
        names = [spec.name for spec in self._executor.model.outputs]
        return utils.InferenceResponse([utils.Tensor(name, array) for name, array in zip(names, outcome, strict=True)])


def check_numpy(utils: Triton) -> None:
    """Raise FailedPrecondition if Triton's backend misreads NumPy's arrays, as one for NumPy 1 does with NumPy 2. It
    says nothing, and its outputs are empty."""
    import numpy as np

    sent = utils.Tensor("x", np.arange(1, 5, dtype=np.float32))
    if not np.array_equal(utils.Tensor.from_dlpack("x", sent.to_dlpack()).as_numpy(), sent.as_numpy()):
        raise FailedPrecondition(
            f"this Triton's Python backend cannot read arrays of NumPy {np.__version__}; install the NumPy that it was "
            "built for, with pip install 'numpy<2'"
        )


def threads_of(config: dict[str, Any]) -> int:
    """The threads of an instance: as config.pbtxt says, or the cores divided by the instances."""
    given = config.get("parameters", {}).get("threads", {}).get("string_value", "")
    if given:
        if not (given.isascii() and given.isdecimal() and int(given)):
            raise InvalidArgument(f"parameter threads {given!r} is not a whole number from 1; change config.pbtxt")
        return int(given)
    instances: int = sum(group.get("count", 1) for group in config.get("instance_group", ()))
    return max(1, usable_cores() // max(1, instances))


def run(executor: GraphExecutor, requests: Sequence[dict[str, Array]]) -> list[Outcome]:
    """The outputs of each request, or its error. Those that fit each other run together."""
    model = executor.model
    outcomes: list[Outcome | None] = [_fault(model, tensors) for tensors in requests]
    together: dict[object, list[int]] = {}
    for at, tensors in enumerate(requests):
        if outcomes[at] is None:
            alike = at if model.batching is None else tuple(tensors[spec.name].shape[1:] for spec in model.inputs)
            together.setdefault(alike, []).append(at)
    for members in together.values():
        inputs = [[requests[at][spec.name] for spec in model.inputs] for at in members]
        for at, outcome in zip(members, _run(executor, inputs), strict=True):
            outcomes[at] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def _fault(model: ModelVersion, tensors: dict[str, Array]) -> OffloadError | None:
    """Why a request cannot run, if it cannot."""
    given = {name: (datatype_of(array.dtype), array.shape) for name, array in tensors.items()}
    try:
        check_tensors(model.inputs, given, what=f"model {model.name!r} version {model.version}")
    except InvalidArgument as error:
        return error
    return None


def _run(executor: GraphExecutor, inputs: Sequence[Sequence[Array]]) -> Sequence[Outcome]:
    try:
        return executor.run(inputs)
    except OffloadError as error:
        if len(inputs) == 1:
            return [error]
        return [outcome for one in inputs for outcome in _run(executor, [one])]  # one may be at fault, not the others
