"""A client without a network, and the uncut model to compare with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.runtime import vm

from workers.executor import GraphExecutor
from zmq_offload.artifacts.repository import Repository
from zmq_offload.compile.build import build
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.target import host_target
from zmq_offload.protocol.tensors import Latest

Array = np.ndarray[Any, Any]
Shapes = tuple[tuple[str, tuple[int | str, ...]], ...]


class LocalClient:
    """Runs the models of a repository in this process, without a broker, and records its calls."""

    def __init__(self, repository: Path) -> None:
        self.repository = Repository(repository)
        self.calls: list[tuple[str, int | Latest | None, float | None, list[str]]] = []
        self.error: BaseException | None = None
        self._executors: dict[tuple[str, int], GraphExecutor] = {}

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | Latest | None = None,
        timeout: float | None = None,
        outputs: Mapping[str, Array] | None = None,
    ) -> Mapping[str, Array]:
        self.calls.append((model, version, timeout, list(inputs)))
        if self.error is not None:
            raise self.error
        key = model, version if isinstance(version, int) else self.repository.versions(model)[-1]
        executor = self._executors.get(key) or self._executors.setdefault(key, GraphExecutor(self.repository, *key))
        (results,) = executor.run([[inputs[spec.name] for spec in executor.model.inputs]])
        if outputs is None:  # the device does not know their shapes
            return {spec.name: result for spec, result in zip(executor.model.outputs, results, strict=True)}
        for spec, result in zip(executor.model.outputs, results, strict=True):
            assert outputs[spec.name].shape == result.shape
            outputs[spec.name][...] = result
        return outputs


def run_uncut(path: Path, inputs: Mapping[str, Sequence[int | str]], arrays: Sequence[Array]) -> list[Array]:
    """The outputs of the whole model, compiled by TVM; once for each file content and shapes."""
    main, outputs = _uncut(path, path.read_bytes(), tuple((name, tuple(shape)) for name, shape in inputs.items()))
    result = main(*map(tvm.runtime.tensor, arrays))
    values = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    return [v.numpy() for v in values[:outputs]]


_compiled: dict[tuple[bytes, Shapes], tuple[Any, int]] = {}


def _uncut(path: Path, content: bytes, shapes: Shapes) -> tuple[Any, int]:
    """The compiled model as a function, and the number of its outputs."""
    key = hashlib.sha256(content).digest(), shapes
    if key not in _compiled:
        imported = import_onnx(path, dict(shapes))
        machine = vm.VirtualMachine(build(imported.mod, host_target()), tvm.cpu())
        _compiled[key] = machine["main"], len(imported.graph.outputs)
    return _compiled[key]
