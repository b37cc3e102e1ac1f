"""A GPU of this machine: CUDA's part of TVM's runtime, and a virtual machine that runs on the GPU."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi
from tvm import libinfo
from tvm_ffi.libinfo import load_lib_ctypes

from zmq_offload.errors import FailedPrecondition, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec
from zmq_offload.runtime.machine import Machine, Memory, memory_on

_PINNED = 3
"""DLPack's number of memory of the CPU that a GPU reads by itself (kDLCUDAHost). TVM has no name for it."""

_NO_MEMORY = re.compile(r"cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY")


@dataclass(frozen=True)
class Gpu:
    """A GPU that is there. `device` has its memory; `staging` is memory of the CPU that is copied to it fast."""

    name: str
    capability: str
    device: tvm.runtime.Device
    staging: tvm.runtime.Device


def open_gpu(name: str) -> Gpu:
    """The GPU of a name such as cuda:0. Raises FailedPrecondition, with the reason, if it cannot be used."""
    number = int(name.removeprefix("cuda:"))
    try:
        _load_cuda()
    except (OSError, RuntimeError) as error:
        raise FailedPrecondition(
            f"{name} cannot be used: {one_line(error)}; it needs NVIDIA's driver (libcuda.so.1) and CUDA's runtime "
            "(pip install nvidia-cuda-runtime)"
        ) from None
    device = tvm.cuda(number)
    if not device.exist:
        raise FailedPrecondition(f"{name} is not there; `nvidia-smi -L` lists the GPUs of this machine")
    return Gpu(name, str(device.compute_version), device, tvm_ffi.core.Device(_PINNED, 0))


def _load_cuda() -> None:
    """Load CUDA's part of TVM's runtime. TVM alone does so only together with its compiler."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        with contextlib.suppress(OSError):  # the system may have another
            ctypes.CDLL(str(Path(place) / "cu13" / "lib" / "libcudart.so.13"), ctypes.RTLD_GLOBAL)
    load_lib_ctypes("tvm", "tvm_runtime_cuda", "RTLD_LOCAL", extra_lib_paths=libinfo.package_lib_paths())


def out_of_memory(error: Exception) -> bool:
    """Whether TVM failed because a GPU has too little memory."""
    return _NO_MEMORY.search(str(error)) is not None


class GpuMachine(Machine):
    """A `Machine` on a GPU. Inputs go through staging memory, outputs come back into memory of the CPU."""

    def __init__(self, library: tvm.runtime.Module, inputs: Sequence[TensorSpec], gpu: Gpu) -> None:
        self._gpu = gpu
        super().__init__(library, inputs, gpu.device)
        # Memory with a known shape is made once. Staging memory is costly to make, so other inputs do without.
        self._inputs = [None if ANY in s.shape else memory_on(gpu.staging, s.shape, s.dtype) for s in inputs]
        self._there = [None if ANY in s.shape else self._empty(s.shape, str(s.dtype)) for s in inputs]

    def _call(self, memories: Sequence[Memory]) -> list[Array]:
        there = self._there or [None] * len(memories)
        arguments = [
            tensor.copyto(own or self._empty(tensor.shape, tensor.dtype))
            for own, (tensor, _) in zip(there, memories, strict=True)
        ]
        results = []
        for tensor in self._results(arguments):
            memory, view = memory_on(tvm.cpu(), tensor.shape, tensor.dtype)
            tensor.copyto(memory)
            results.append(view)
        self._gpu.device.sync()
        return results

    def _empty(self, shape: Sequence[int], dtype: str) -> tvm.runtime.Tensor:
        return tvm.runtime.empty(tuple(shape), str(dtype), self._gpu.device)
