"""The requests that this gateway passed on, counted as Triton counts them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from zmq_offload.client.results import Timings


@dataclass(slots=True)
class Duration:
    """How often something happened, and the nanoseconds that it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * 1e9)


@dataclass(slots=True)
class VersionStatistics:
    """The requests for one version of a model.

    `success` and `fail` have the whole time in the gateway; `queue` is the broker's, `compute` the worker's, which
    includes taking the inputs in and giving the outputs out. `last` is the time of the last request, in milliseconds
    since 1970.
    """

    last: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Duration = field(default_factory=Duration)


class Statistics:
    """All versions that answered requests."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, int], VersionStatistics] = {}

    def of(self, model: str, version: int) -> VersionStatistics:
        """The statistics of a version; all zero before its first request."""
        return self._versions.get((model, version)) or VersionStatistics()

    def succeeded(self, model: str, version: int, timings: Timings, now: float) -> None:
        """Count a request that was answered. `now` is in seconds since 1970."""
        found = self._versions.get((model, version))
        if found is None:
            found = self._versions[model, version] = VersionStatistics()
        found.last = int(now * 1000)
        found.success.add(timings.total)
        found.queue.add(timings.queue)
        found.compute.add(timings.compute)

    def failed(self, model: str, version: int, seconds: float) -> None:
        """Count a request that failed. The caller makes sure that the version is or was served."""
        self._versions.setdefault((model, version), VersionStatistics()).fail.add(seconds)
