"""One virtual machine on one library: load it, run a function of it on arrays, release its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from zmq_offload.artifacts.repository import loadable
from zmq_offload.common.memory import trim
from zmq_offload.errors import FailedPrecondition, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec
from zmq_offload.runtime import tvm_library
from zmq_offload.runtime.ending import ENDING
from zmq_offload.runtime.mapped import forget_weights
from zmq_offload.runtime.refusal import refusal
from zmq_offload.runtime.tvm_library import CPU, tvm_ffi, virtual_machine
from zmq_offload.runtime.views import view_of

Memory: TypeAlias = tuple[tvm_ffi.Tensor, Array]
"""A tensor of TVM's, and a view of it."""

_LOAD_ERRORS = (AttributeError, RuntimeError)


@contextmanager
def loading(what: object) -> Iterator[None]:
    """In the body, errors of TVM's become FailedPrecondition: `what`, a file for instance, cannot be loaded."""
    try:
        yield
    except _LOAD_ERRORS as error:
        raise FailedPrecondition(f"{what} cannot be loaded: {one_line(error)}") from None


def check_tvm_version(what: object, built_by: str) -> None:
    """Raises FailedPrecondition, naming `what`, if it was built by another version of TVM than this one."""
    own = tvm_library.version()
    if built_by != own:
        raise FailedPrecondition(f"{what} was built by TVM {built_by}, this is TVM {own}; compile it again")


def load_library(path: str | os.PathLike[str]) -> tvm_ffi.Module:
    """A compiled Relax module, which is unloaded when it is dropped. Raises FailedPrecondition, naming the file, if the
    file is not one."""
    with loading(path), ENDING.place():
        spelled = loadable(Path(path))
        module = tvm_ffi.load_module(spelled, keep_module_alive=False)
        module["vm_load_executable"]
    forget_weights(spelled)
    return module


def release_memory() -> None:
    """Return to the system the memory of virtual machines that were dropped. TVM pools it, for all of them, and never
    gives it back by itself."""
    tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
    trim()


MAIN = "main"
"""The function of a library that has one entry only."""


class Machine:
    """Runs a function of one library, its `entry`. For one thread at a time.

    `inputs` is the entry's signature; memory of inputs with known shapes is made once. Without a signature, memory is
    made for each run. With `calls_back`, the library calls functions of ours. When the machine is dropped, results that
    are still held stay valid. Machines on one library share its weights on a CPU.
    """

    def __init__(
        self,
        library: tvm_ffi.Module,
        inputs: Sequence[TensorSpec] = (),
        device: tvm_ffi.Device = CPU,
        *,
        entry: str = MAIN,
        calls_back: bool = False,
    ) -> None:
        self._inside = ENDING.place(calls_back=calls_back)
        with self._inside:
            self._machine = virtual_machine(library, device)
            self._entries = {entry: self._machine[entry]}
            self.entry, self._entry = entry, self._entries[entry]
            self._inputs = [None if ANY in spec.shape else memory(spec.shape, spec.dtype) for spec in inputs]
        self._specs = inputs
        known = [made for made in self._inputs if made is not None]
        self._known = (
            ([m[0] for m in known], [m[1] for m in known], [_span(m[0]) for m in known])
            if 0 < len(known) == len(inputs)
            else None
        )

    def use(self, entry: str) -> None:
        """Run another function from now on, which takes the same inputs."""
        found = self._entries.get(entry)
        if found is None:
            with self._inside:
                found = self._entries[entry] = self._machine[entry]
        self.entry, self._entry = entry, found

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """The results of the entry for arrays that fit the signature. The arrays are copied, the results the caller's.

        Raises InvalidArgument, naming the input, if extents differ that have to be the same. The signature does not
        tell which have to.

        TVM assumes memory that is aligned to 64 bytes, which a caller's array or a frame need not be. So the inputs are
        copied into tensors of this machine.
        """
        with self._inside:
            return self._run(arrays)

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        if self._known is not None:
            tensors, views, spans = self._known
            for view, array in zip(views, arrays, strict=True):
                view[...] = array
            return self._call(tensors, spans)
        own = self._inputs or [None] * len(arrays)
        memories = [
            m or memory(array.shape, array.dtype.newbyteorder("=")) for m, array in zip(own, arrays, strict=True)
        ]
        for (_, view), array in zip(memories, arrays, strict=True):
            view[...] = array
        return self._call_with(memories)

    def run_together(self, requests: Sequence[Sequence[Array]]) -> list[Array]:
        """The results of the entry for the inputs of several requests, one after the other along dimension 0."""
        rows = sum(request[0].shape[0] for request in requests)
        memories = []
        with self._inside:
            for own, *arrays in zip(self._inputs, *requests, strict=True):
                m = own or memory((rows, *arrays[0].shape[1:]), arrays[0].dtype.newbyteorder("="))
                np.concatenate(arrays, out=m[1])
                memories.append(m)
            return self._call_with(memories)

    def _results(self, arguments: Sequence[tvm_ffi.Tensor]) -> Sequence[tvm_ffi.Tensor]:
        try:
            result = self._entry(*arguments)
        except Exception as error:
            refused = refusal(error, [spec.name for spec in self._specs])
            if refused is None:
                raise
            raise refused from None
        return (result,) if isinstance(result, tvm_ffi.Tensor) else result

    def _call_with(self, memories: Sequence[Memory]) -> list[Array]:
        tensors = [tensor for tensor, _ in memories]
        return self._call(tensors, [_span(tensor) for tensor in tensors])

    def _call(self, tensors: Sequence[tvm_ffi.Tensor], spans: Sequence[tuple[int, int]]) -> list[Array]:
        results = self._results(tensors)
        views = list(map(view_of, results))
        # A result's memory lives as long as the array. But a model may hand an input through, perhaps under another
        # shape, and the next run writes to an input's memory.
        for at, result in enumerate(results):
            begin = result.data_ptr()
            for first, last in spans:
                if first <= begin <= last:
                    views[at] = views[at].copy()
        return views


def _span(tensor: tvm_ffi.Tensor) -> tuple[int, int]:
    """The addresses of the first and of the last byte of a tensor's memory."""
    first = tensor.data_ptr()
    return first, first + max(1, view_of(tensor).nbytes) - 1


def memory(shape: Sequence[int], dtype: object) -> Memory:
    """A tensor of the CPU, and a view of it."""
    tensor = tvm_library.empty(shape, dtype)
    return tensor, view_of(tensor)
