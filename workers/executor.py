"""One deployed subgraph: its library, one Relax VM, its inputs' memory. The only module of the workers with TVM.

TVM's runtime is enough (TVM_USE_RUNTIME_LIB=1 halves the memory of a worker), so nothing of the compiler is imported.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import libinfo
from tvm.runtime import vm
from tvm_ffi.libinfo import load_lib_ctypes

from zmq_offload.artifacts.repository import DESCRIPTION, LIBRARY, Repository, loadable
from zmq_offload.common.memory import trim
from zmq_offload.errors import FailedPrecondition, Internal, one_line
from zmq_offload.protocol.tensors import ANY

Array = np.ndarray[Any, Any]


_ONE_CORE_PER_THREAD = -2
"""tvm::runtime::threading::ThreadGroup::kSpecifyOneCorePerThread"""


# Sorting, and with it topk and NMS, is in a library of its own, which TVM loads with its compiler only.
with contextlib.suppress(RuntimeError, OSError):  # a TVM without it is complete, or says later what it lacks
    _EXTRA = load_lib_ctypes("tvm", "tvm_runtime_extra", "RTLD_LOCAL", extra_lib_paths=libinfo.package_lib_paths())


def bind_threads(cores: Sequence[int]) -> None:
    """Give each thread of TVM's pool one of these cores. By itself TVM takes the host's first ones, whatever this
    process may use. The calling thread, which works along with the pool, stays on any of them."""
    threads = int(os.environ["TVM_NUM_THREADS"])
    if threads > 1:
        configure = tvm_ffi.get_global_func("runtime.config_threadpool")
        configure(_ONE_CORE_PER_THREAD, threads, [str(core) for core in cores])


def give_back() -> None:
    """Return to the system what executors that are gone used: TVM pools the memory that its virtual machines compute
    in, for all of them and for ever."""
    tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
    trim()


class GraphExecutor:
    """Runs one version of one model. Not for several threads at a time. When it is dropped the library is unloaded;
    outputs that are still held stay valid.

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
        if self.model.cpu is not None:
            self.model.cpu.check(str(folder / LIBRARY))
        try:
            library = tvm_ffi.load_module(loadable(folder / LIBRARY), keep_module_alive=False)
            self._main = vm.VirtualMachine(library, tvm.cpu())["main"]
        except (tvm.error.InternalError, AttributeError, RuntimeError) as error:
            raise FailedPrecondition(f"{folder / LIBRARY} cannot be loaded: {one_line(error)}") from None
        # 64-byte aligned, as TVM assumes; a frame's memory is not. With a view of each, made once.
        self._inputs = [
            _memory(spec.shape, str(spec.dtype)) if ANY not in spec.shape else None for spec in self.model.inputs
        ]

    def warm_up(self, cores: Sequence[int] = ()) -> None:
        """Run once with ones, so that the first request does not wait for memory and code to be there. What fails here
        is left to the requests.

        In a thread of its own, with its pool of TVM's threads on `cores`: another thread may be running another
        executor. Only models with float inputs and known shapes (a symbolic batch is one row): ones may be no sensible
        integers.
        """
        shapes = [(1, *spec.shape[1:]) if spec.shape[:1] == (ANY,) else spec.shape for spec in self.model.inputs]
        if any(ANY in shape for shape in shapes) or any(spec.dtype.kind != "f" for spec in self.model.inputs):
            return
        ones = [np.ones(shape, spec.dtype) for shape, spec in zip(shapes, self.model.inputs, strict=True)]

        def once() -> None:
            with contextlib.suppress(Exception):
                if cores:
                    bind_threads(cores)
                self.run([ones])

        thread = threading.Thread(target=once, name="warm-up", daemon=True)
        thread.start()
        thread.join()

    def run(self, requests: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """Run requests together, each with its inputs in the order of `model.inputs` and checked against it. The inputs
        are copied, once. Several requests differ in dimension 0 only, which is the batch.

        The outputs of each, in the order of `model.outputs`, are views of memory that stays theirs until they are
        dropped. Raises Internal, with TVM's message, if the subgraph fails.
        """
        rows = [request[0].shape[0] for request in requests] if len(requests) > 1 else [0]
        try:
            inputs = [own or _memory_for(requests, at, sum(rows)) for at, own in enumerate(self._inputs)]
            for at, (_, view) in enumerate(inputs):
                _fill(view, [request[at] for request in requests])
            result = self._main(*(tensor for tensor, _ in inputs))
            results = [np.from_dlpack(t) for t in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]
        except Exception as error:
            raise Internal(
                f"model {self.model.name!r} version {self.model.version} failed: {one_line(error)}"
            ) from error
        # An output may be an input handed through, under another shape perhaps: the next request writes to that.
        results = [r.copy() if any(np.may_share_memory(r, view) for _, view in inputs) else r for r in results]
        if len(requests) == 1:
            return [results]
        if any(r.ndim == 0 or r.shape[0] != sum(rows) for r in results):
            raise Internal(
                f"model {self.model.name!r} version {self.model.version} does not keep the batch's rows apart"
            )
        ends = list(itertools.accumulate(rows))
        return [[r[end - own : end] for r in results] for own, end in zip(rows, ends, strict=True)]


def _memory(shape: Sequence[int], datatype: str) -> tuple[tvm.runtime.Tensor, Array]:
    tensor = tvm.runtime.empty(tuple(shape), datatype, tvm.cpu())
    return tensor, np.from_dlpack(tensor)


def _memory_for(requests: Sequence[Sequence[Array]], at: int, rows: int) -> tuple[tvm.runtime.Tensor, Array]:
    """For one input of symbolic shape, of all requests."""
    array = requests[0][at]
    return _memory(array.shape if len(requests) == 1 else (rows, *array.shape[1:]), str(array.dtype))


def _fill(memory: Array, parts: Sequence[Array]) -> None:
    if len(parts) == 1:
        memory[...] = parts[0]
    else:
        np.concatenate(parts, out=memory)
