"""Histograms: how many values fell between which bounds. Pure.

A `Histogram` is added to on the data path, so that is two additions and a search in a tuple. `Buckets` are what it held
at one time, for everything else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

LATENCIES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for times, in seconds."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Bounds for the rows of a batch."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """What a histogram held at one time.

    Attributes
    ----------
    bounds
        The largest value of each bucket, ascending.
    counts
        The values in each bucket alone, one more than bounds: the last bucket has those over all bounds.
    sum
        The sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @classmethod
    def of_body(cls, body: Mapping[str, Any]) -> Buckets:
        """Buckets from a map of a broker's status."""
        return cls(tuple(body["bounds"]), tuple(body["counts"]), body["sum"])

    def body(self) -> dict[str, object]:
        """The map of a broker's status."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """The mean of all values; 0 without any."""
        return self.sum / count if (count := self.count) else 0.0

    def since(self, earlier: Buckets) -> Buckets:
        """The values that were added since `earlier`, which has the same bounds.

        If fewer are here, the program that counts them was started again, and all of these are new.
        """
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return self if min(counts) < 0 else Buckets(self.bounds, counts, self.sum - earlier.sum)

    def plus(self, other: Buckets) -> Buckets:
        """The values of both, which have the same bounds."""
        counts = tuple(one + two for one, two in zip(self.counts, other.counts, strict=True))
        return Buckets(self.bounds, counts, self.sum + other.sum)

    def quantile(self, q: float) -> float:
        """The value that a share `q` of all values does not exceed, as if they were spread evenly over a bucket.

        0 without values. The highest bound if it is over all bounds, as Prometheus has it.
        """
        rank = q * self.count
        if not self.count:
            return 0.0
        below, low = 0, 0.0
        for bound, count in zip(self.bounds, self.counts[:-1], strict=True):
            if count and below + count >= rank:
                return low + (bound - low) * max(0.0, rank - below) / count
            below, low = below + count, bound
        return self.bounds[-1]

    def cumulative(self) -> list[int]:
        """For each bound, and then without one, how many values are at most that."""
        return list(accumulate(self.counts))


class Histogram:
    """Counts values by buckets. `bounds` are the largest values of each, ascending."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = LATENCIES) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def plus(self, other: Histogram) -> Histogram:
        """The values of both, which have the same bounds."""
        both = Histogram(self.bounds)
        both.counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]
        both.sum = self.sum + other.sum
        return both

    def buckets(self) -> Buckets:
        return Buckets(self.bounds, tuple(self.counts), self.sum)
