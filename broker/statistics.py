"""What became of the requests, by the version of a model that they were for, and which took longest. Pure.

Only versions that a worker announced are counted by themselves, so that clients cannot make this grow.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter
from typing import NamedTuple

from broker.state import PendingRequest
from zmq_offload.protocol import messages as wire
from zmq_offload.telemetry.histograms import BATCHES, LATENCIES, Histogram

MOST_VERSIONS = 1000
"""Versions that are counted by themselves. A new one takes the place of the one that was counted first."""

MOST_SLOW = 50
"""Slow requests that are kept."""

SLOW_FOR = 300.0
"""Seconds after which the search for slow requests begins again. Those of the time before are kept as long."""

_SHORTEST = LATENCIES[0]

OK = "ok"
"""The status of a request that was answered with a result."""


class VersionStatistics:
    """The requests for one version that ended. The histograms have those that were answered with a result."""

    __slots__ = ("batch", "bytes_in", "bytes_out", "compute", "failed", "queue", "rows", "total")

    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()
        """By status."""
        self.queue, self.compute, self.total = Histogram(), Histogram(), Histogram()
        """Seconds until a worker had it, in its worker, and from its arrival to its end."""
        self.batch = Histogram(BATCHES)
        """Rows of each batch that ran."""
        self.rows = self.bytes_in = self.bytes_out = 0

    @property
    def requests(self) -> dict[str, int]:
        """By status."""
        return {OK: sum(self.total.counts), **self.failed}


class SlowRequest(NamedTuple):
    """A request that took long. Times are in seconds; `ended_at` is the broker's time."""

    total: float
    ended_at: float
    key: str
    model: str
    version: int
    worker: str
    queue: float
    compute: float
    attempts: int
    status: str


class Statistics:
    """Counts requests as they end. `started` is the time at which the broker came up."""

    def __init__(self, started: float) -> None:
        self.versions: dict[tuple[str, int], VersionStatistics] = {}
        self.unplaced: Counter[str] = Counter()
        """By status: requests for what no worker ever had, and those for versions that are no longer counted."""
        self._slow: list[SlowRequest] = []  # a heap: the shortest first
        self._slow_before: list[SlowRequest] = []
        self._bar = -1.0  # what a slow request must exceed
        self._begin_at = started + SLOW_FOR

    def served(self, request: PendingRequest, message: wire.Done, nbytes: int, now: float) -> None:
        """Count a request that is answered with a result of `nbytes` bytes."""
        _, _, _, compute_us, rows, batch = message
        runs = request.wanted[0], request.runs
        version = self.versions.get(runs)
        if version is None:
            version = self._add(runs)
        accepted_at, compute = request.accepted_at, compute_us / 1e6
        total, waited = now - accepted_at, request.dispatched_at - accepted_at
        # What `Histogram.add` does, without a call for each.
        times = version.queue
        times.counts[bisect_left(LATENCIES, waited) if waited > _SHORTEST else 0] += 1
        times.sum += waited
        times = version.compute
        times.counts[bisect_left(LATENCIES, compute)] += 1
        times.sum += compute
        times = version.total
        times.counts[bisect_left(LATENCIES, total)] += 1
        times.sum += total
        if batch == 1:
            sizes = version.batch
            sizes.counts[0] += 1
            sizes.sum += 1
        elif batch:
            version.batch.add(batch)
        version.rows += rows
        version.bytes_in += request.nbytes
        version.bytes_out += nbytes
        if total > self._bar or now > self._begin_at:
            self._add_slow(request, request.runs, compute, OK, now)

    def failed(self, request: PendingRequest, version: int, status: str, now: float) -> None:
        """Count a request that ends with an error. `version` is 0 if no worker ever had what it asks for."""
        if version:
            runs = request.wanted.model, version
            counted = self.versions.get(runs) or self._add(runs)
            counted.failed[status] += 1
            counted.bytes_in += request.nbytes
        else:
            self.unplaced[status] += 1
        if now - request.accepted_at > self._bar or now > self._begin_at:
            self._add_slow(request, version, 0.0, status, now)

    def slow(self, now: float) -> list[SlowRequest]:
        """The requests that took longest of those that ended lately, the slowest first."""
        since = now - 2 * SLOW_FOR
        lately = [request for request in (*self._slow, *self._slow_before) if request.ended_at > since]
        return heapq.nlargest(MOST_SLOW, lately)

    def _add(self, runs: tuple[str, int]) -> VersionStatistics:
        if len(self.versions) == MOST_VERSIONS:
            first = next(iter(self.versions))
            self.unplaced.update(self.versions.pop(first).requests)
        version = self.versions[runs] = VersionStatistics()
        return version

    def _add_slow(self, request: PendingRequest, version: int, compute: float, status: str, now: float) -> None:
        if now > self._begin_at:
            self._slow_before, self._slow = self._slow, []
            self._bar, self._begin_at = -1.0, now + SLOW_FOR
        slow = SlowRequest(
            now - request.accepted_at,
            now,
            str(request.key),
            request.wanted.model,
            version,
            "" if request.worker is None else request.worker.name,
            (request.dispatched_at if request.attempt else now) - request.accepted_at,
            compute,
            request.attempt,
            status,
        )
        if len(self._slow) < MOST_SLOW:
            heapq.heappush(self._slow, slow)
        else:
            heapq.heappushpop(self._slow, slow)
            self._bar = self._slow[0].total
