"""Offload subgraphs of Apache TVM models to shared workers over ZeroMQ.

`Client` and `AsyncClient` call models through a broker. `load` runs a device bundle, which calls its offloaded
subgraphs through a broker. Every error is an `OffloadError`; `zmq_offload.errors` draws the tree.
"""

from __future__ import annotations

from zmq_offload.common.version import __version__

TYPE_CHECKING = False  # importing typing would take time before `zmq_offload.cli.main` can handle Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from zmq_offload.client.aio import AsyncClient
    from zmq_offload.client.results import Outputs, Timings
    from zmq_offload.client.sync import Client
    from zmq_offload.errors import OffloadError, Status
    from zmq_offload.protocol.tensors import Latest

__all__ = ["AsyncClient", "Client", "Latest", "OffloadError", "Outputs", "Status", "Timings", "__version__", "load"]

_PLACES = {
    "AsyncClient": "zmq_offload.client.aio",
    "Client": "zmq_offload.client.sync",
    "Latest": "zmq_offload.protocol.tensors",
    "OffloadError": "zmq_offload.errors",
    "Outputs": "zmq_offload.client.results",
    "Status": "zmq_offload.errors",
    "Timings": "zmq_offload.client.results",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, because programs must handle Ctrl-C before they import NumPy and ZeroMQ.
    if name in _PLACES:
        import importlib

        found = getattr(importlib.import_module(_PLACES[name]), name)
        globals()[name] = found
        return found
    # Only a device that runs a bundle needs TVM; clients and the broker do not.
    if name == "load":
        from zmq_offload.common.extras import needs

        with needs("tvm"):
            from zmq_offload.device.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
