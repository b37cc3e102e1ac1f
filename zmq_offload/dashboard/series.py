"""Rates, latencies and queues over time, in memory that is bounded. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from zmq_offload.telemetry.histograms import Buckets

HOUR = 3600.0

RECENT = 5.0
"""Seconds over which what happens now is averaged."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What happened between two looks at a broker.

    Attributes
    ----------
    seconds
        The time between them.
    ok, failed
        Requests that were served, and that failed or were refused.
    latency
        How long the served ones took in the broker; None if that is not known.
    queued
        Requests that wait at the second look.
    """

    seconds: float
    ok: int
    failed: int
    latency: Buckets | None
    queued: int


@dataclass(frozen=True, slots=True)
class Rates:
    """What happens now: requests and errors per second, and percentiles of latency in seconds, None without any."""

    requests: float
    errors: float
    p50: float | None
    p95: float | None
    p99: float | None


class Point(NamedTuple):
    """A step of a series. `number` counts steps from the start of the clock; `queued` is the most that waited."""

    number: int
    requests: float
    errors: float
    p50: float | None
    p95: float | None
    p99: float | None
    queued: int


class Series:
    """The last hour, in steps of `step` seconds, each one small tuple. Without `keep`, only what happens now."""

    def __init__(self, step: float, *, keep: bool = True) -> None:
        self.step = step
        self._done: deque[Point] = deque(maxlen=int(HOUR / step) if keep else 0)
        self._number = 0
        self._current: Sample | None = None
        self._recent: deque[tuple[float, Sample]] = deque()

    def add(self, now: float, sample: Sample) -> None:
        """Add what happened until `now`, which never goes back."""
        number = int(now // self.step)
        if number != self._number and self._current is not None:
            self._done.append(_point(self._number, self._current))
            self._current = None
        self._number = number
        self._current = sample if self._current is None else _both(self._current, sample)
        self._recent.append((now, sample))
        self._forget(now)

    def now(self, now: float) -> Rates:
        """What happens now."""
        self._forget(now)
        return rates_of([sample for _, sample in self._recent])

    def points(self, now: float, last: int | None = None) -> list[Point]:
        """The steps of the last hour, or the `last` ones, oldest first; the newest is not over yet.

        Steps in which nothing was known are left out.
        """
        oldest = int((now - HOUR) // self.step) if last is None else int(now // self.step) - last
        points = [point for point in islice(reversed(self._done), last) if point.number > oldest]
        points.reverse()
        if self._current is not None and self._number > oldest:
            points.append(_point(self._number, self._current))
        return points

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - RECENT:
            self._recent.popleft()


def rates_of(samples: Iterable[Sample]) -> Rates:
    """The rates of all samples together."""
    samples = list(samples)
    seconds = sum(sample.seconds for sample in samples)
    if seconds <= 0:
        return Rates(0.0, 0.0, None, None, None)
    ok, failed = sum(sample.ok for sample in samples), sum(sample.failed for sample in samples)
    latency = together(sample.latency for sample in samples)
    percentiles = [None if latency is None else latency.quantile(q) for q in (0.5, 0.95, 0.99)]
    return Rates(ok / seconds, failed / seconds, *percentiles)


def together(many: Iterable[Buckets | None]) -> Buckets | None:
    """All values of these; None if there is none. Those whose bounds differ from the first ones' are left out."""
    whole: Buckets | None = None
    for buckets in many:
        if buckets is None or not buckets.count:
            continue
        if whole is None:
            whole = buckets
        elif whole.bounds == buckets.bounds:
            whole = whole.plus(buckets)
    return whole


def _both(one: Sample, other: Sample) -> Sample:
    """What happened in one time and the next."""
    return Sample(
        one.seconds + other.seconds,
        one.ok + other.ok,
        one.failed + other.failed,
        together([one.latency, other.latency]),
        max(one.queued, other.queued),
    )


def _point(number: int, sample: Sample) -> Point:
    """A step as few digits: the page gets thousands of them."""
    rates = rates_of([sample])
    p50, p95, p99 = (None if each is None else round(each, 6) for each in (rates.p50, rates.p95, rates.p99))
    return Point(number, round(rates.requests, 2), round(rates.errors, 2), p50, p95, p99, sample.queued)
