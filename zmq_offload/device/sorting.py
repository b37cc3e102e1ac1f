"""Sorting, and with it topk and NMS: a library of TVM's own, which it loads with its compiler only.

With TVM's runtime alone (TVM_USE_RUNTIME_LIB=1) importing this loads it, so that a device can run what it was given.
"""

from __future__ import annotations

import contextlib

from tvm import libinfo
from tvm_ffi.libinfo import load_lib_ctypes

with contextlib.suppress(RuntimeError, OSError):  # a TVM without it is complete, or says later what it lacks
    LIBRARY = load_lib_ctypes("tvm", "tvm_runtime_extra", "RTLD_LOCAL", extra_lib_paths=libinfo.package_lib_paths())
