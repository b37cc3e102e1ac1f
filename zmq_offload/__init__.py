"""Offload subgraphs of Apache TVM models to shared workers over ZeroMQ.

`Client` and `AsyncClient` call models through a broker; `load` runs a device bundle, whose offloaded subgraphs are
called through one. What goes wrong is an `OffloadError`; `zmq_offload.errors` draws the tree.
"""

from __future__ import annotations

from typing import Any

from zmq_offload.aio import AsyncClient
from zmq_offload.client import Client
from zmq_offload.errors import OffloadError, Status
from zmq_offload.extras import needs
from zmq_offload.results import Outputs, Timings

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "OffloadError", "Outputs", "Status", "Timings", "load"]


def __getattr__(name: str) -> Any:
    # Only a device that runs a bundle needs TVM; a plain client and the broker do without.
    if name == "load":
        with needs("tvm"):
            from zmq_offload.byoc.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
