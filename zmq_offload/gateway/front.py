"""What fabrics in front of another have in common: those that keep answers, count requests, trace them or log them."""

from __future__ import annotations

from collections.abc import Callable

from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Call, Cancel, Ended, Fabric
from zmq_offload.gateway.catalog import Catalog, Indexed
from zmq_offload.gateway.statistics import Statistics
from zmq_offload.net.grants import Grant


class Front:
    """A `zmq_offload.gateway.calls.Fabric` that passes on to another what its class does not do itself."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    @property
    def statistics(self) -> Statistics:
        return self._fabric.statistics

    @property
    def stopping(self) -> bool:
        return self._fabric.stopping

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        return self._fabric.infer(call, grant, ended)

    def models(
        self,
        grant: Grant,
        ended: Callable[[Catalog | OffloadError], None],
        name: str | None = None,
        version: int | None = None,
    ) -> Cancel:
        return self._fabric.models(grant, ended, name, version)

    def index(self, grant: Grant, ended: Callable[[list[Indexed] | OffloadError], None]) -> Cancel:
        return self._fabric.index(grant, ended)

    def load(self, name: str, grant: Grant, ended: Callable[[OffloadError | None], None]) -> Cancel:
        return self._fabric.load(name, grant, ended)

    def unload(self, name: str, grant: Grant, ended: Callable[[OffloadError | None], None]) -> Cancel:
        return self._fabric.unload(name, grant, ended)
