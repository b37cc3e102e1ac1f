"""Compile a model into a device bundle for the device and subgraphs for the workers.

Names are imported on first use, so that the command line can show its help where TVM is not installed.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

# TVM imports PyTorch where it is installed. For a version that cannot exchange tensors by itself, it would compile and
# load a C++ extension, and warn if that fails. Nothing here needs it.
os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")

if TYPE_CHECKING:
    from zmq_offload.byoc.cut import cut_module
    from zmq_offload.byoc.partition import partition_for_zmq_offload
    from zmq_offload.byoc.region import Region
    from zmq_offload.compile.accuracy import Loss, measure_losses
    from zmq_offload.compile.api import compile_model, compile_module, list_cuts
    from zmq_offload.compile.bundle import Compiled
    from zmq_offload.compile.cuts import CutPoint
    from zmq_offload.compile.options import BuildOptions
    from zmq_offload.compile.splits import Cut
    from zmq_offload.compile.uncut import UncutModel, compile_uncut

__all__ = [
    "BuildOptions",
    "Compiled",
    "Cut",
    "CutPoint",
    "Loss",
    "Region",
    "UncutModel",
    "compile_model",
    "compile_module",
    "compile_uncut",
    "cut_module",
    "list_cuts",
    "measure_losses",
    "partition_for_zmq_offload",
]

_MODULES = {
    "BuildOptions": "compile.options",
    "Compiled": "compile.bundle",
    "Cut": "compile.splits",
    "CutPoint": "compile.cuts",
    "Loss": "compile.accuracy",
    "Region": "byoc.region",
    "UncutModel": "compile.uncut",
    "compile_model": "compile.api",
    "compile_module": "compile.api",
    "compile_uncut": "compile.uncut",
    "cut_module": "byoc.cut",
    "list_cuts": "compile.api",
    "measure_losses": "compile.accuracy",
    "partition_for_zmq_offload": "byoc.partition",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"zmq_offload.{_MODULES[name]}"), name)
