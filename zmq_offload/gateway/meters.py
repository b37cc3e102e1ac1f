"""What a gateway with metrics counts of its requests. Pure.

Clients choose the names in requests, and must not fill the memory: only models that are or were served have numbers of
their own. All other requests are counted together.
"""

from __future__ import annotations

from collections.abc import Iterator

from zmq_offload.client.results import Timings
from zmq_offload.errors import OffloadError, Status
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.protocol.packed import Layout
from zmq_offload.telemetry.histograms import Histogram

OK = "ok"
"""The status of a request that was answered with outputs."""


class Answers:
    """The requests of one protocol that one version answered."""

    __slots__ = ("bytes_in", "bytes_out", "compute", "queue", "rows", "total")

    def __init__(self) -> None:
        self.total = Histogram()
        """Their times. It counts them, too."""
        self.queue = 0.0
        self.compute = 0.0
        self.rows = 0
        self.bytes_in = 0
        self.bytes_out = 0

    def add(self, timings: Timings, inputs: Layout, outputs: Layout) -> None:
        """Count a request. This is all that it costs a request to be counted, so it looks nothing up."""
        self.queue += timings.queue
        self.compute += timings.compute
        self.total.add(timings.total)
        self.rows += inputs.rows
        self.bytes_in += sum(inputs.sizes)
        self.bytes_out += sum(outputs.sizes)


class VersionMeters:
    """The requests for one version of a model. Any thread may read it."""

    __slots__ = ("answers", "failed_bytes", "failures")

    def __init__(self) -> None:
        self.answers: dict[str, Answers] = {}
        """By protocol."""
        self.failures: dict[tuple[str, str], int] = {}
        """By protocol and status."""
        self.failed_bytes = 0
        """Bytes of their inputs."""

    def requests(self) -> dict[tuple[str, str], int]:
        """The requests that ended, by protocol and status."""
        answered = {(protocol, OK): its.total.buckets().count for protocol, its in dict(self.answers).items()}
        return answered | dict(self.failures)

    def summed(self) -> Answers:
        """The answers by all protocols, as they are now. `bytes_in` has the inputs of failures, too."""
        whole = Answers()
        whole.bytes_in = self.failed_bytes
        for its in list(self.answers.values()):
            whole.total = whole.total.plus(its.total)
            whole.queue += its.queue
            whole.compute += its.compute
            whole.rows += its.rows
            whole.bytes_in += its.bytes_in
            whole.bytes_out += its.bytes_out
        return whole


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

    def answers(self, protocol: str, model: str, version: int) -> Answers:
        """Where requests that this version answers are counted."""
        its = self._of_served(model, version)
        found = its.answers.get(protocol)
        if found is None:
            found = its.answers[protocol] = Answers()
        return found

    def failed(
        self, protocol: str, status: Status, model: str, version: int | None, label: str, inputs: Layout
    ) -> None:
        """Count a request without outputs. Without a version it was for that of the label, or else the latest."""
        meant = self._meant.get((model, label), 0) if version is None else version
        its = self._versions.get((model, meant), self.unknown)
        key = protocol, status.value
        its.failures[key] = its.failures.get(key, 0) + 1
        its.failed_bytes += sum(inputs.sizes)

    def _of_served(self, model: str, version: int) -> VersionMeters:
        found = self._versions.get((model, version))
        if found is None:
            found = self._versions[model, version] = VersionMeters()
            self._meant.setdefault((model, ""), version)  # until a list of models says it
        return found
