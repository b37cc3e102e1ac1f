"""The whole model in one library: what a split one is compared with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm.runtime import vm

from zmq_offload.artifacts.repository import loadable
from zmq_offload.compile.build import build, export
from zmq_offload.compile.importer import Dim, import_uncut
from zmq_offload.compile.target import resolve_target
from zmq_offload.device.pools import THREADS
from zmq_offload.errors import FailedPrecondition

Array = np.ndarray[Any, Any]


def compile_uncut(
    model: str | os.PathLike[str],
    library: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Sequence[Dim]] | None = None,
    target: str | dict[str, Any] | tvm.target.Target | None = None,
) -> None:
    """Compile an ONNX model as it is into the shared library `library`. The arguments are those of `compile_model`.

    Raises InvalidArgument for a model, shape or target that cannot be used, FailedPrecondition if the library cannot be
    linked, Internal if TVM fails to compile.
    """
    chosen = resolve_target(target)
    export(build(import_uncut(model, inputs or {}), chosen), Path(library), chosen)


class UncutModel:
    """A library of `compile_uncut`, to be called with the model's inputs in order. Not for several threads at a time.

    Raises FailedPrecondition, naming the file, if it cannot be loaded, and in a forked child of a process in which TVM
    ran.
    """

    def __init__(self, library: str | os.PathLike[str]) -> None:
        try:
            module = tvm_ffi.load_module(loadable(Path(library)), keep_module_alive=False)
            self._main = vm.VirtualMachine(module, tvm.cpu())["main"]
        except (tvm.error.InternalError, AttributeError, RuntimeError) as error:
            raise FailedPrecondition(f"{library} cannot be loaded: {' '.join(str(error).split())[:500]}") from None

    def __call__(self, *inputs: Array) -> list[Array]:
        THREADS.use()
        result = self._main(*(tvm.runtime.tensor(array) for array in inputs))
        return [r.numpy() for r in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]
