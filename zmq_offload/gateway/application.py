"""Which protocols a gateway speaks at which of its ports."""

from __future__ import annotations

from zmq_offload.gateway.calls import Fabric
from zmq_offload.gateway.config import Config
from zmq_offload.gateway.ports import Door


def doors(config: Config, fabric: Fabric) -> list[Door]:
    """The ports that are wanted. Call it in the event loop."""
    return []
