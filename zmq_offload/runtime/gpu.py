"""A GPU of this machine: CUDA's part of TVM's runtime, and a virtual machine that runs on the GPU."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zmq_offload.errors import FailedPrecondition, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec
from zmq_offload.runtime import tvm_library
from zmq_offload.runtime.machine import MAIN, Machine, memory
from zmq_offload.runtime.tvm_library import tvm_ffi

_EXISTS, _CAPABILITY, _TITLE = 0, 4, 5
"""Of `tvm::runtime::DeviceAttrKind`."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that is there. `device` is TVM's name for it."""

    name: str
    capability: str
    device: tvm_ffi.Device
    title: str = ""


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
    device = tvm_ffi.device("cuda", number)
    if not _attribute(device, _EXISTS):
        raise FailedPrecondition(f"{name} is not there; `nvidia-smi -L` lists the GPUs of this machine")
    return Gpu(name, str(_attribute(device, _CAPABILITY)), device, str(_attribute(device, _TITLE)))


def _attribute(device: tvm_ffi.Device, number: int) -> object:
    return tvm_ffi.get_global_func("runtime.GetDeviceAttr")(device.dlpack_device_type(), device.index, number)


def _load_cuda() -> None:
    """Load CUDA's part of TVM's runtime. TVM alone does so only together with its compiler."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        with contextlib.suppress(OSError):  # the system may have another
            ctypes.CDLL(str(Path(place) / "cu13" / "lib" / "libcudart.so.13"), ctypes.RTLD_GLOBAL)
    tvm_library.load("tvm_runtime_cuda")


class GpuMachine(Machine):
    """A `Machine` on a GPU. Inputs are copied to it from where they are, and outputs into memory of the CPU.

    Inputs do not pass through page-locked memory: copying them there takes longer than it saves.
    """

    def __init__(self, library: tvm_ffi.Module, inputs: Sequence[TensorSpec], gpu: Gpu, *, entry: str = MAIN) -> None:
        super().__init__(library, (), gpu.device, entry=entry)
        self._gpu = gpu
        self._specs = inputs
        self._there = [None if ANY in spec.shape else self._empty(spec.shape, spec.dtype) for spec in inputs]

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        arguments = [
            tvm_library.fill(own or self._empty(array.shape, array.dtype.newbyteorder("=")), array)
            for own, array in zip(self._there, arrays, strict=True)
        ]
        results = []
        for tensor in self._results(arguments):
            there, view = memory(tensor.shape, tensor.dtype)
            tvm_library.copy(tensor, there)
            results.append(view)
        tvm_library.wait_for(self._gpu.device)
        return results

    def run_together(self, requests: Sequence[Sequence[Array]]) -> list[Array]:
        return self.run([np.concatenate(arrays) for arrays in zip(*requests, strict=True)])

    def _empty(self, shape: Sequence[int], dtype: object) -> tvm_ffi.Tensor:
        return tvm_library.empty(shape, dtype, self._gpu.device)
