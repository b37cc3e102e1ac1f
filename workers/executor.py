"""One deployed subgraph: its library, one Relax VM, its inputs' memory. The only module of the workers with TVM.

TVM's runtime is enough (TVM_USE_RUNTIME_LIB=1 halves the memory of a worker), so nothing of the compiler is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm.runtime import vm

from zmq_offload.errors import FailedPrecondition, Internal
from zmq_offload.protocol.tensors import ANY
from zmq_offload.repository import DESCRIPTION, LIBRARY, Repository

Array = np.ndarray[Any, Any]


class GraphExecutor:
    """Runs one version of one model. Not for several threads at a time.

    Raises FailedPrecondition, naming the file, if the version is missing or damaged, was built by another version of
    TVM, or is no library of TVM's.
    """

    def __init__(self, repository: Repository, name: str, version: int) -> None:
        self.model = repository.read(name, version)
        folder = repository.path(name, version)
        if self.model.tvm_version != tvm.__version__:
            raise FailedPrecondition(
                f"{folder / DESCRIPTION}: built by TVM {self.model.tvm_version}, this is TVM {tvm.__version__}; "
                "compile it again"
            )
        try:
            library = tvm.runtime.load_module(str(folder / LIBRARY))
            self._main = vm.VirtualMachine(library, tvm.cpu())["main"]
        except (tvm.error.InternalError, AttributeError, RuntimeError) as error:
            raise FailedPrecondition(f"{folder / LIBRARY} cannot be loaded: {_one_line(error)}") from None
        # 64-byte aligned, as TVM assumes; a frame's memory is not.
        self._tensors = [
            tvm.runtime.empty(spec.shape, str(spec.dtype), tvm.cpu()) if ANY not in spec.shape else None
            for spec in self.model.inputs
        ]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once; `inputs` in the order of `model.inputs` and checked against it. They are copied, once.

        The outputs, in the order of `model.outputs`, are views of memory that stays theirs until they are dropped.
        Raises Internal, with TVM's message, if the subgraph fails.
        """
        try:
            tensors = [
                tensor if tensor is not None else tvm.runtime.empty(array.shape, str(array.dtype), tvm.cpu())
                for tensor, array in zip(self._tensors, inputs, strict=True)
            ]
            memory = [np.from_dlpack(t) for t in tensors]
            for own, array in zip(memory, inputs, strict=True):
                own[...] = array
            result = self._main(*tensors)
            results = [np.from_dlpack(t) for t in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]
        except Exception as error:
            raise Internal(
                f"model {self.model.name!r} version {self.model.version} failed: {_one_line(error)}"
            ) from error
        # An output may be an input handed through, under another shape perhaps: the next request writes to that.
        return [r.copy() if any(np.may_share_memory(r, own) for own in memory) else r for r in results]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
