"""Relax VMs on one library, for any number of threads."""

from __future__ import annotations

import os
import platform
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm.runtime import vm

from zmq_offload.artifacts.repository import loadable
from zmq_offload.common.cores import cpu_quota, usable_cores
from zmq_offload.common.lifetime import tell_of_forks
from zmq_offload.common.memory import trim
from zmq_offload.device import sorting  # noqa: F401  (for what importing it does)
from zmq_offload.device.pools import THREADS, pool_threads
from zmq_offload.device.remote import Array, registered
from zmq_offload.device.turns import Turns
from zmq_offload.errors import FailedPrecondition, one_line
from zmq_offload.protocol.tensors import ANY, TensorSpec

# Each thread that runs a VM has a pool of its own, and TVM binds each to the first cores, the running thread with it:
# runs that could go on beside each other would share a core, and whatever such a thread starts would inherit it.
os.environ.setdefault("TVM_BIND_THREADS", "0")

if not {"TVM_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys() and cpu_quota() is not None:
    # By itself TVM takes half of an x86 machine's cores, hyperthreads being none, and knows nothing of a quota.
    _granted = len(os.sched_getaffinity(0))
    _own = _granted if platform.machine().lower() in ("aarch64", "arm64") else max(1, _granted // 2)
    os.environ["TVM_NUM_THREADS"] = str(min(usable_cores(), _own))


TURNS = Turns(max(1, usable_cores() // pool_threads()))
"""The process's: all models in it compute on the same cores, each run with as many threads as TVM's pool has."""


_inherited: list[object] = []
"""VMs and libraries of the process that this one was forked from: to drop them could wait for TVM's locks."""


class Machines:
    """VMs on a library whose `main` takes `inputs`.

    A VM is for one thread at a time, but any: one is made when no other is free, and kept. `functions` are what the
    library's symbols call (see `remote.registered`). When it is dropped, its memory goes back to the system and the
    library is unloaded; results that are still held stay valid.
    """

    def __init__(
        self,
        library: tvm.runtime.Module,
        inputs: Sequence[TensorSpec],
        functions: Mapping[str, Callable[..., None]] | None = None,
    ) -> None:
        self._library = [library]  # a list, so that the finalizer has the only other reference to what it drops
        self._inputs = inputs
        self._functions = functions or {}
        self._free: list[_Machine] = []
        self._finalizer = weakref.finalize(self, _give_back, self._free, self._library)
        self._finalizer.atexit = False
        tell_of_forks(self)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run `main` on arrays that were checked against the inputs; they are copied. The results are the caller's.

        Raises FailedPrecondition in a forked child where TVM cannot run.
        """
        THREADS.use()
        try:
            machine = self._free.pop()  # atomic, as is append
        except IndexError:
            with registered(self._functions):
                machine = _Machine(self._library[0], self._inputs)
        try:
            return machine.run(arrays)
        finally:
            self._free.append(machine)

    def forget(self) -> None:
        self._finalizer.detach()
        _inherited.append((list(self._free), self._library))


class _Machine:
    """One VM, and the memory of its inputs."""

    def __init__(self, library: tvm.runtime.Module, inputs: Sequence[TensorSpec]) -> None:
        self._main = vm.VirtualMachine(library, tvm.cpu())["main"]
        # TVM assumes aligned memory, which a caller's array need not have: copied into tensors of its own, made once.
        self._places = [_place(spec.shape, spec.dtype) if ANY not in spec.shape else None for spec in inputs]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        places = [place or _place(array.shape, array.dtype) for place, array in zip(self._places, arrays, strict=True)]
        for (_, view), array in zip(places, arrays, strict=True):
            view[...] = array
        result = self._main(*[tensor for tensor, _ in places])
        results = [np.from_dlpack(t) for t in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]
        # The memory of a result lives as long as the array, except where the model hands an input through, perhaps
        # under another shape: that memory is ours, and the next call writes to it.
        for _, view in places:
            results = [r.copy() if np.may_share_memory(r, view) else r for r in results]
        return results


def _give_back(machines: list[_Machine], library: list[tvm.runtime.Module]) -> None:
    """Drop these, and return to the system what they computed in: TVM pools it, for all virtual machines and for
    ever."""
    machines.clear()
    library.clear()
    tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
    trim()


def load_library(path: Path) -> tvm.runtime.Module:
    """A compiled Relax module. Raises FailedPrecondition, naming the file, if it is none."""
    try:
        module = tvm_ffi.load_module(loadable(path), keep_module_alive=False)
        module["vm_load_executable"]
    except (tvm.error.InternalError, AttributeError, RuntimeError) as error:
        raise FailedPrecondition(f"{path} cannot be loaded: {one_line(error)}") from None
    return module


def _place(shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[tvm.runtime.Tensor, Array]:
    """Memory for an input, and a view of it."""
    tensor = tvm.runtime.empty(tuple(shape), str(dtype), tvm.cpu())
    return tensor, np.from_dlpack(tensor)
