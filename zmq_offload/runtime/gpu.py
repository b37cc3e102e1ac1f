"""A GPU of this machine: CUDA's part of TVM's runtime, and a virtual machine that runs on the GPU."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from tvm import libinfo
from tvm_ffi.libinfo import load_lib_ctypes

from zmq_offload.errors import FailedPrecondition, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec
from zmq_offload.runtime.machine import Machine, memory

_NO_MEMORY = re.compile(r"cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY")


@dataclass(frozen=True)
class Gpu:
    """A GPU that is there. `device` is TVM's name for it."""

    name: str
    capability: str
    device: tvm.runtime.Device


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
    return Gpu(name, str(device.compute_version), device)


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
    """A `Machine` on a GPU. Inputs are copied to it from where they are, and outputs into memory of the CPU.

    Inputs do not pass through page-locked memory: copying them there takes longer than it saves.
    """

    def __init__(self, library: tvm.runtime.Module, inputs: Sequence[TensorSpec], gpu: Gpu) -> None:
        super().__init__(library, (), gpu.device)
        self._gpu = gpu
        self._specs = inputs
        self._there = [None if ANY in spec.shape else self._empty(spec.shape, spec.dtype) for spec in inputs]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        arguments = [
            (own or self._empty(array.shape, array.dtype.newbyteorder("="))).copyfrom(array)
            for own, array in zip(self._there, arrays, strict=True)
        ]
        results = []
        for tensor in self._results(arguments):
            there, view = memory(tensor.shape, tensor.dtype)
            tensor.copyto(there)
            results.append(view)
        self._gpu.device.sync()
        return results

    def run_together(self, requests: Sequence[Sequence[Array]]) -> list[Array]:
        return self.run([np.concatenate(arrays) for arrays in zip(*requests, strict=True)])

    def _empty(self, shape: Sequence[int], dtype: object) -> tvm.runtime.Tensor:
        return tvm.runtime.empty(tuple(shape), str(dtype), self._gpu.device)
