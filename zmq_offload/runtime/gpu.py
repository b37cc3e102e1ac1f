"""A GPU of this machine: CUDA's part of TVM's runtime, and a virtual machine that runs on the GPU."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zmq_offload.errors import FailedPrecondition, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.runtime import tvm_library
from zmq_offload.runtime.copies import Copies, Cudart
from zmq_offload.runtime.machine import MAIN, Machine
from zmq_offload.runtime.tvm_library import tvm_ffi

_EXISTS, _CAPABILITY, _TITLE = 0, 4, 5
"""Of `tvm::runtime::DeviceAttrKind`."""


AT_ONCE = 2
"""The most runs of a machine that have begun and not ended: one computes, and the inputs of the next are copied."""


@dataclass(frozen=True, eq=False)
class Gpu:
    """A GPU that is there. `device` is TVM's name for it."""

    name: str
    capability: str
    device: tvm_ffi.Device
    title: str
    copies: Copies
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held while a thread gives the GPU something to do. A thread that captures a CUDA graph, as the first run of a
    machine may, forbids all others the default stream meanwhile."""
    flights: set[object] = field(default_factory=set)
    """The runs that have begun and not ended."""


def open_gpu(name: str) -> Gpu:
    """The GPU of a name such as cuda:0. Raises FailedPrecondition, with the reason, if it cannot be used."""
    number = int(name.removeprefix("cuda:"))
    try:
        cudart = _load_cuda()
        cudart.made("cudaGetDeviceCount")
    except (OSError, RuntimeError) as error:
        raise FailedPrecondition(
            f"{name} cannot be used: {one_line(error)}; it needs NVIDIA's driver (libcuda.so.1) and CUDA's runtime "
            "(pip install nvidia-cuda-runtime)"
        ) from None
    device = tvm_ffi.device("cuda", number)
    if not _attribute(device, _EXISTS):
        raise FailedPrecondition(f"{name} is not there; `nvidia-smi -L` lists the GPUs of this machine")
    try:
        copies = Copies(cudart, number)
    except RuntimeError as error:  # a GPU that is in a fault, or whose memory others have taken
        raise FailedPrecondition(f"{name} cannot be used: {one_line(error)}; `nvidia-smi` tells its state") from None
    return Gpu(name, str(_attribute(device, _CAPABILITY)), device, str(_attribute(device, _TITLE)), copies)


def _attribute(device: tvm_ffi.Device, number: int) -> object:
    return tvm_ffi.get_global_func("runtime.GetDeviceAttr")(device.dlpack_device_type(), device.index, number)


def _load_cuda() -> Cudart:
    """Load CUDA's part of TVM's runtime, and CUDA's runtime. TVM alone does so only together with its compiler."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        with contextlib.suppress(OSError):  # the system may have another
            ctypes.CDLL(str(Path(place) / "cu13" / "lib" / "libcudart.so.13"), ctypes.RTLD_GLOBAL)
    tvm_library.load("tvm_runtime_cuda")
    return Cudart(ctypes.CDLL("libcudart.so.13"))


class _Slot:
    """The memory for the inputs of one run: on the GPU, and page-locked. It is made anew when shapes change."""

    def __init__(self, gpu: Gpu, inputs: int) -> None:
        self._gpu = gpu
        self._there: list[tvm_ffi.Tensor | None] = [None] * inputs
        self._staging: list[Array | None] = [None] * inputs
        self.ended = gpu.copies.event()
        """The end of the copies of its outputs."""

    def fill(self, at: int, arrays: Sequence[Array], staged: bool) -> tvm_ffi.Tensor:
        """Begin to copy an input to the GPU: the arrays of requests that run together, one after the other. The arrays
        are read by then, `staged` or not."""
        first = arrays[0]
        shape = (sum(array.shape[0] for array in arrays), *first.shape[1:]) if len(arrays) > 1 else first.shape
        dtype = first.dtype.newbyteorder("=")
        there = self._there[at]
        if there is None or tuple(there.shape) != shape:
            there = self._there[at] = tvm_library.empty(shape, dtype, self._gpu.device)
        if len(arrays) == 1 and not staged:
            source = np.ascontiguousarray(first, dtype)
        else:
            staging = self._staging[at]
            if staging is None or staging.shape != shape:
                staging = self._staging[at] = self._gpu.copies.memory(shape, dtype)
            source = np.concatenate(arrays, out=staging) if len(arrays) > 1 else staging
            if len(arrays) == 1:
                source[...] = first
        self._gpu.copies.into(there.data_ptr(), source)
        return there


class Flight:
    """A run on a GPU that has begun."""

    def __init__(self, gpu: Gpu, slot: _Slot, free: list[_Slot], results: object, outputs: list[Array]) -> None:
        self._gpu, self._slot, self._free = gpu, slot, free
        self._results = results  # which hold the memory on the GPU
        self._outputs = outputs
        gpu.flights.add(self)

    def end(self) -> list[Array]:
        """Wait for the outputs, which are the caller's. Raises RuntimeError if the run failed."""
        try:
            self._gpu.copies.wait(self._slot.ended)
            return self._outputs
        finally:
            self._gpu.flights.discard(self)
            self._free.append(self._slot)


class GpuMachine(Machine):
    """A `Machine` on a GPU, where a second run can begin before the first has ended.

    While one computes, the inputs of the next are copied to the GPU through page-locked memory. A run that is alone
    there has its inputs copied from where they are: through page-locked memory they would be copied twice, and nothing
    would overlap.
    """

    def __init__(self, library: tvm_ffi.Module, inputs: Sequence[TensorSpec], gpu: Gpu, *, entry: str = MAIN) -> None:
        with gpu.turn:
            gpu.copies.use()
            super().__init__(library, (), gpu.device, entry=entry)
        self._gpu = gpu
        self._specs = inputs
        self._slots = [_Slot(gpu, len(inputs)) for _ in range(AT_ONCE)]
        weakref.finalize(self, gpu.copies.give_back, [slot.ended for slot in self._slots])

    def begin(self, requests: Sequence[Sequence[Array]]) -> Flight:
        """Begin to run requests together, one after the other along dimension 0. Raises as `run` does."""
        with self._inside, self._gpu.turn:
            return self._begin(requests)

    def _begin(self, requests: Sequence[Sequence[Array]]) -> Flight:
        gpu, copies, slot = self._gpu, self._gpu.copies, self._slots.pop()
        try:
            copies.use()
            inputs = enumerate(zip(*requests, strict=True))
            arguments = [slot.fill(at, arrays, bool(gpu.flights)) for at, arrays in inputs]
            copies.compute_after()
            results = list(self._results(arguments))
            copies.copy_after()
            outputs = [copies.memory(tuple(tensor.shape), np.dtype(str(tensor.dtype))) for tensor in results]
            for tensor, output in zip(results, outputs, strict=True):
                copies.out_of(tensor.data_ptr(), output)
            copies.mark(slot.ended)
        except BaseException:
            with contextlib.suppress(RuntimeError):
                copies.settle()  # before others use the memory
            self._slots.append(slot)
            raise
        return Flight(gpu, slot, self._slots, results, outputs)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        return self.run_together([arrays])

    def run_together(self, requests: Sequence[Sequence[Array]]) -> list[Array]:
        flight = self.begin(requests)
        with self._inside:
            return flight.end()
