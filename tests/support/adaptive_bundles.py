"""Run the splits of an adaptive bundle in this process: each entry of the device's library, and the models it calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm_ffi

from workers.executor import GraphExecutor
from zmq_offload.artifacts.manifest import LIBRARY
from zmq_offload.artifacts.repository import Repository
from zmq_offload.compile import Compiled
from zmq_offload.runtime.machine import Machine, load_library

Array = np.ndarray[Any, Any]


def run_splits(compiled: Compiled, arrays: Sequence[Array]) -> dict[str, list[Array]]:
    """The outputs by each split, by its name, and those of the whole model on the device as ""."""
    manifest = compiled.manifest
    repository = Repository(compiled.subgraphs[0].parent.parent)
    for split in manifest.splits:
        region = split.region
        executor = GraphExecutor(repository, region.model, compiled.models[0].version)
        tvm_ffi.register_global_func(region.symbol, _Call(executor), override=True)
    library = load_library(compiled.device / LIBRARY)
    entries = {split.name: split.entry for split in manifest.splits} | ({"": manifest.local} if manifest.local else {})
    return {name: Machine(library, entry=entry).run(arrays) for name, entry in entries.items()}


class _Call:
    """What the device's library calls in place of a request."""

    def __init__(self, executor: GraphExecutor) -> None:
        self._executor = executor

    def __call__(self, *tensors: tvm_ffi.Tensor) -> None:
        arrays = [np.from_dlpack(tensor) for tensor in tensors]
        inputs = len(self._executor.model.inputs)
        (results,) = self._executor.run([arrays[:inputs]])
        for place, result in zip(arrays[inputs:], results, strict=True):
            place[...] = result
