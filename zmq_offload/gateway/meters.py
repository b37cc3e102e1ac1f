"""What a gateway with metrics counts of its requests. Pure.

Clients choose the names in requests, and must not fill the memory: only models that are or were served have numbers of
their own. All other requests are counted together.
"""

from __future__ import annotations

from collections.abc import Iterator

from zmq_offload.errors import OffloadError, Status
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.protocol.packed import Layout
from zmq_offload.telemetry.histograms import Histogram

OK = "ok"
"""The status of a request that was answered with outputs."""


class VersionMeters:
    """The requests for one version of a model. Times, rows and `bytes_out` are those of requests that were answered."""

    __slots__ = ("bytes_in", "bytes_out", "compute", "queue", "requests", "rows", "total")

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], int] = {}
        """By protocol and status."""
        self.total = Histogram()
        self.queue = 0.0
        self.compute = 0.0
        self.rows = 0
        self.bytes_in = 0
        self.bytes_out = 0


class Meters:
    """The requests of a gateway, and what it knows of its broker."""

    def __init__(self) -> None:
        self.unknown = VersionMeters()
        """Requests for what was never served."""
        self.reachable = False
        """Whether the broker answered when it was asked last."""
        self._versions: dict[tuple[str, int], VersionMeters] = {}
        self._meant: dict[tuple[str, str], int] = {}
        """Versions by model and label; by an empty label the latest."""

    def look(self, answer: Catalog | OffloadError) -> None:
        """Note what a broker answered when it was asked for its models."""
        self.reachable = isinstance(answer, Catalog)
        if not isinstance(answer, Catalog):
            return
        for model in answer.models:
            self._of_served(model.name, model.version)
            for label in (*model.labels, *([""] if model.latest else [])):
                self._meant[model.name, label] = model.version

    def versions(self) -> Iterator[tuple[str, int, VersionMeters]]:
        """All versions that are or were served, with their requests. Any thread may call this."""
        for (model, version), its in sorted(self._versions.items(), key=lambda item: item[0]):
            yield model, version, its

    def succeeded(
        self,
        protocol: str,
        model: str,
        version: int,
        seconds: tuple[float, float, float],
        inputs: Layout,
        outputs: Layout,
    ) -> None:
        """Count a request that this version answered. `seconds` are those in all, in the queue, and in the worker."""
        its = self._versions.get((model, version)) or self._of_served(model, version)
        total, queue, compute = seconds
        key = protocol, OK
        its.requests[key] = its.requests.get(key, 0) + 1
        its.total.add(total)
        its.queue += queue
        its.compute += compute
        its.rows += inputs.rows
        its.bytes_in += sum(inputs.sizes)
        its.bytes_out += sum(outputs.sizes)

    def failed(
        self, protocol: str, status: Status, model: str, version: int | None, label: str, inputs: Layout
    ) -> None:
        """Count a request without outputs. Without a version it was for that of the label, or else the latest."""
        meant = self._meant.get((model, label), 0) if version is None else version
        its = self._versions.get((model, meant), self.unknown)
        key = protocol, status.value
        its.requests[key] = its.requests.get(key, 0) + 1
        its.bytes_in += sum(inputs.sizes)

    def _of_served(self, model: str, version: int) -> VersionMeters:
        found = self._versions.get((model, version))
        if found is None:
            found = self._versions[model, version] = VersionMeters()
            self._meant.setdefault((model, ""), version)  # until a list of models says it
        return found
