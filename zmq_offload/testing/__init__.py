"""A broker, workers and a slow network on this machine, started from Python.

`Fabric` and `Link` are for tests and trials of programs that use this library; the demonstration and `zmq-offload plan`
use them, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zmq_offload.testing.fabric import Fabric
    from zmq_offload.testing.link import Conditions, Link, Outage

__all__ = ["Conditions", "Fabric", "Link", "Outage"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the command `link` needs no client.
    if name == "Fabric":
        from zmq_offload.testing.fabric import Fabric

        return Fabric
    if name in __all__:
        from zmq_offload.testing import link

        return getattr(link, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
