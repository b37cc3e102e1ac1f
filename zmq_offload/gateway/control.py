"""Which models this gateway takes requests for. Pure. Broker and workers know nothing of it.

Triton's model control loads and unloads models of a server. Here workers load what is in their repository; a gateway
only opens and closes its own way to a model.
"""

from __future__ import annotations

from zmq_offload.errors import Internal, OffloadError, Unavailable
from zmq_offload.gateway.catalog import Catalog


class ModelControl:
    """The models that were unloaded here. `allowed` is the option `--model-control`."""

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self.closed: set[str] = set()

    def refusal(self) -> OffloadError | None:
        """Why nothing can be loaded or unloaded, as Triton answers without explicit model control."""
        if self._allowed:
            return None
        return Unavailable("explicit model load / unload is not allowed; start the gateway with --model-control")

    def load(self, name: str, served: Catalog) -> OffloadError | None:
        """Open the way to a model. Fails, with Triton's words, for one that no worker serves."""
        if not served.has(name):
            return Internal(f"failed to load {name!r}, failed to poll from model repository: no worker serves it")
        self.closed.discard(name)
        return None

    def unload(self, name: str, served: Catalog) -> None:
        """Close the way to a model. To unload a model that is not served does nothing, as in Triton."""
        if served.has(name):
            self.closed.add(name)
