"""Sorting, and with it topk and NMS: TVM keeps them in a library that it loads together with its compiler only.

Importing this module loads that library, so that TVM's runtime alone can run models that sort.
"""

from __future__ import annotations

import contextlib

from tvm import libinfo
from tvm_ffi.libinfo import load_lib_ctypes

with contextlib.suppress(RuntimeError, OSError):  # some builds of TVM have sorting built in; others say what they lack
    LIBRARY = load_lib_ctypes("tvm", "tvm_runtime_extra", "RTLD_LOCAL", extra_lib_paths=libinfo.package_lib_paths())
