"""The requests that this gateway passed on, counted as Triton counts them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from zmq_offload.client.results import Timings

SIZES = 128
"""Batch sizes of a version that are counted by themselves. Clients choose the sizes, and must not fill the memory."""


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

    `last` is the time of the last request, in milliseconds since 1970. `fail` has the whole time in the gateway.
    `cache_hit` has the requests that were answered from the cache, with the time of that; `cache_miss` those that were
    looked for in vain, with the time of looking.
    """

    last: int = 0
    fail: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    _count: int = 0
    _seconds: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    _rows: int = 0
    _hit_rows: int = 0
    _by_rows: dict[int, Duration] = field(default_factory=dict)

    @property
    def success(self) -> Duration:
        """Requests that were answered, with their whole time in the gateway. Those from the cache count, too."""
        run = self.run
        return Duration(run.count + self.cache_hit.count, run.ns + self.cache_hit.ns)

    @property
    def run(self) -> Duration:
        """Requests that a worker answered, with their whole time in the gateway."""
        return self._duration(0)

    @property
    def queue(self) -> Duration:
        """Their time in the broker."""
        return self._duration(1)

    @property
    def compute(self) -> Duration:
        """Their time in the worker, which includes taking the inputs in and giving the outputs out."""
        return self._duration(2)

    def _duration(self, of: int) -> Duration:
        return Duration(self._count, round(self._seconds[of] * 1e9))

    def inferences(self, batched: bool) -> int:
        """The inputs that were answered: rows, if dimension 0 of the model's inputs is the batch, else requests."""
        return self._rows + self._hit_rows if batched else self._count + self.cache_hit.count

    def computed(self, batched: bool) -> int:
        """Those of them that a worker answered."""
        return self._rows if batched else self._count

    def batches(self, batched: bool) -> list[tuple[int, Duration]]:
        """Compute times by batch size. A gateway sees requests, not the batches that a worker makes of them."""
        if batched:
            return sorted(self._by_rows.items())
        return [(1, self.compute)] if self._count else []

    def hit(self, rows: int, seconds: float, now: float) -> None:
        """Count a request that was answered from the cache in `seconds`. `now` is in seconds since 1970."""
        self.last = int(now * 1000)
        self._hit_rows += rows
        self.cache_hit.add(seconds)

    def succeeded(self, rows: int, timings: Timings, now: float) -> None:
        """Count a request that was answered. `rows` is dimension 0 of its inputs, `now` in seconds since 1970."""
        self.last = int(now * 1000)
        self._count += 1
        self._rows += rows
        seconds = self._seconds
        seconds[0] += timings.total
        seconds[1] += timings.queue
        seconds[2] += timings.compute
        by_rows = self._by_rows.get(rows)
        if by_rows is None:
            if len(self._by_rows) == SIZES:
                return
            by_rows = self._by_rows[rows] = Duration()
        by_rows.add(timings.compute)


class Statistics:
    """All versions that had requests."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, int], VersionStatistics] = {}

    def of(self, model: str, version: int) -> VersionStatistics:
        """The statistics of a version; all zero before its first request."""
        return self._versions.get((model, version)) or VersionStatistics()

    def versions(self) -> list[tuple[str, int, VersionStatistics]]:
        """All of them, sorted by name and number. Any thread may call this."""
        return [(*key, its) for key, its in sorted(self._versions.items(), key=lambda item: item[0])]

    def count(self, model: str, version: int) -> VersionStatistics:
        """The same, to be changed. The caller makes sure that the version is or was served."""
        found = self._versions.get((model, version))
        if found is None:
            found = self._versions[model, version] = VersionStatistics()
        return found
