"""Model file -> device bundle and model repository.

Imported on first use, so that the command line can describe the subcommand where TVM is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zmq_offload.byoc.cut import cut_module
    from zmq_offload.byoc.partition import partition_for_zmq_offload
    from zmq_offload.compile.api import Compiled, CutPoint, Region, compile_model, compile_module, list_cuts

__all__ = [
    "Compiled",
    "CutPoint",
    "Region",
    "compile_model",
    "compile_module",
    "cut_module",
    "list_cuts",
    "partition_for_zmq_offload",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "partition_for_zmq_offload":
        from zmq_offload.byoc import partition

        return getattr(partition, name)
    if name == "cut_module":
        from zmq_offload.byoc import cut

        return getattr(cut, name)
    from zmq_offload.compile import api

    return getattr(api, name)
