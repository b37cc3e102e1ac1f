"""CUDA C++ to machine code for a GPU, by NVRTC in this process. No GPU and no driver is needed."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

from zmq_offload.errors import FailedPrecondition, Internal

_PREAMBLE = """#include <cuda/std/cstdint>
#include <cuda/std/limits>
#ifndef INFINITY
#define INFINITY (::cuda::std::numeric_limits<float>::infinity())
#endif
"""
"""What the code uses that the system's headers have elsewhere, which NVRTC does not read."""

_HELP = "pip install 'zmq-offload[cuda]'"


def toolkit() -> Path:
    """The folder of NVIDIA's packages, with `include` and `lib`. Raises FailedPrecondition if it is not there."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(place) / "cu13"
        needed = ("lib/libnvrtc.so.13", "include/cuda_fp16.h", "include/cccl/cuda/std/cstdint", "include/crt/mma.h")
        if all((folder / file).exists() for file in needed):
            return folder
    raise FailedPrecondition(f"compiling for a GPU needs NVRTC and CUDA's headers, which are not installed; {_HELP}")


def machine_code(source: str, architecture: str) -> bytes:
    """Compile CUDA C++ for a GPU, for example sm_80. Returns a cubin.

    Raises FailedPrecondition if NVRTC is not there or does not know the GPU, and Internal for code that it refuses.
    """
    folder = toolkit()
    # NVRTC loads its other library by name, from what the process has loaded.
    for file in sorted((folder / "lib").glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(file))
    nvrtc = ctypes.CDLL(str(folder / "lib" / "libnvrtc.so.13"))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    program = ctypes.c_void_p()
    code = (_PREAMBLE + source).encode()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, b"kernels.cu", 0, None, None))
    try:
        include = folder / "include"
        options = [
            f"--gpu-architecture={architecture}",
            "-default-device",
            "--device-int128",
            "--fmad=true",
            f"-I{include}",
            f"-I{include / 'cccl'}",
        ]
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), given):
            log = _bytes(nvrtc, program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").decode(errors="replace")
            text = " ".join(log.strip("\0 \n").split())[:500]
            if "gpu-architecture" in text:
                raise FailedPrecondition(f"the NVRTC that is installed does not know the GPU {architecture}: {text}")
            raise Internal(f"NVRTC cannot compile the kernels for {architecture}: {text}")
        return _bytes(nvrtc, program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, size: str, content: str) -> bytes:
    length = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, size)(program, ctypes.byref(length)))
    buffer = ctypes.create_string_buffer(length.value)
    _check(nvrtc, getattr(nvrtc, content)(program, buffer))
    return buffer.raw


def _check(nvrtc: ctypes.CDLL, code: int) -> None:
    if code:
        raise Internal(f"NVRTC fails: {nvrtc.nvrtcGetErrorString(code).decode()}")
