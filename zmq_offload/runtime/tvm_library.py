"""TVM's runtime by its shared library and `tvm_ffi`, without the Python package `tvm`.

The package is the compiler's: importing it takes 38 MB and 0.2 s even with the runtime's library alone, and 150 MB with
the compiler's. To run a compiled library, a few functions of the shared library are enough. A program that compiles
imports `tvm` besides, before or after this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zmq_offload.errors import FailedPrecondition, one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.runtime.runtime_only import VARIABLE

__all__ = [
    "CPU", "copy", "empty", "fill", "load", "tensor", "tvm_ffi", "version", "virtual_machine", "wait_for",
]  # fmt: skip


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """In the body, PyTorch cannot be imported, unless it is already. Where it is installed, `tvm_ffi` would import it
    for tensors that this process has none of."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


if os.environ.get(VARIABLE, "1") != "1":  # the user wants TVM as a whole
    import tvm  # noqa: F401

with _without_torch():
    import tvm_ffi
    from tvm_ffi.libinfo import load_lib_ctypes


def _folders() -> list[Path]:
    """Where TVM's libraries are, as `tvm.libinfo.package_lib_paths` has it."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'tvm'", name="tvm")
    package = Path(spec.submodule_search_locations[0])
    given = os.environ.get("TVM_LIBRARY_PATH")
    top = package.parent.parent
    return [*([Path(given)] if given else []), package / "lib", top / "build" / "lib", top / "lib"]


def load(name: str, mode: str = "RTLD_LOCAL") -> Any:
    """Load one of TVM's libraries, such as tvm_runtime_cuda. Raises OSError or RuntimeError if it cannot be loaded."""
    return load_lib_ctypes("tvm", name, mode, extra_lib_paths=_folders())


load("tvm_runtime", "RTLD_GLOBAL")
# Sorting, and with it topk and NMS: TVM itself loads it only together with its compiler.
with contextlib.suppress(RuntimeError, OSError):  # some builds of TVM have sorting built in; others say what they lack
    load("tvm_runtime_extra")

CPU = tvm_ffi.device("cpu", 0)
_POOLED = 2
"""TVM's name for the allocator that keeps the memory of tensors for the next run."""

_allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
_fill = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromBytes")
_copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
_wait = tvm_ffi.get_global_func("runtime.Device_StreamSync")


@functools.cache
def version() -> str:
    """TVM's version, as `tvm.__version__` has it."""
    for folder in _folders():
        file = folder.parent / "_version.py"
        if file.is_file():
            spec = importlib.util.spec_from_file_location("zmq_offload_tvm_version", file)
            if spec is not None and spec.loader is not None:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return str(module.version)
    import tvm

    return str(tvm.__version__)


def empty(shape: Sequence[int], dtype: object, device: tvm_ffi.Device = CPU) -> tvm_ffi.Tensor:
    """A tensor, aligned to 64 bytes, whose content is arbitrary."""
    return _allocate(tvm_ffi.Shape(list(map(int, shape))), tvm_ffi.dtype(str(dtype)), device, None)


def fill(there: tvm_ffi.Tensor, array: Array) -> tvm_ffi.Tensor:
    """Copy an array into a tensor of its shape and datatype, and return the tensor."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    _fill(there, ctypes.c_void_p(array.ctypes.data), array.nbytes)
    return there


def tensor(array: Array) -> tvm_ffi.Tensor:
    """A copy of an array as a tensor of the CPU."""
    return fill(empty(array.shape, array.dtype), array)


def copy(source: tvm_ffi.Tensor, there: tvm_ffi.Tensor) -> None:
    """Copy a tensor to another, which may be on another device. `wait_for` tells when that is done."""
    _copy(source, there)


def wait_for(device: tvm_ffi.Device) -> None:
    """Wait until a device has done what it was given."""
    _wait(device, 0)


def virtual_machine(library: tvm_ffi.Module, device: tvm_ffi.Device = CPU) -> tvm_ffi.Module:
    """A virtual machine on a library, as `tvm.runtime.vm.VirtualMachine` makes it. Its functions are its items."""
    machine = library["vm_load_executable"]()
    devices = [device] if device.dlpack_device_type() == CPU.dlpack_device_type() else [device, CPU]
    places = [value for place in devices for value in (place.dlpack_device_type(), place.index, _POOLED)]
    try:
        machine["vm_initialization"](*places)
    except RuntimeError as error:
        # A function that the package has in Python, such as the one for `R.print`.
        if "tvm" in sys.modules or "Cannot find" not in str(error):
            raise
        try:
            import tvm.runtime.vm  # noqa: F401
        except ImportError:
            raise FailedPrecondition(
                f"the library calls a function of TVM's Python package, which is not in a device image: "
                f"{one_line(error)}; install zmq-offload[device] there"
            ) from None

        machine["vm_initialization"](*places)
    return machine
