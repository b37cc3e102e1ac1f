"""What a worker takes for a version, as the broker measures it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

GAIN = 1 / 32
"""The weight of a new time in the moving averages. The first ones count as in a mean."""

OUTLIER = 8.0
"""A longer time than this many averages counts as this many: one long run in a thousand does not change a worker's
rank."""

SLOWER, QUICKER = 2.5, 0.3
STREAK = 5, 8
"""So many times in a row that are longer than `SLOWER`, or shorter than `QUICKER`, averages are the new average."""

DRIFT = 1.2
"""Pools are looked at again when an average has changed by this factor."""

KNOWN = 32
_LOOKS = 4, 8, 16, KNOWN
"""Pools are looked at again after so many runs, too, when more is known."""

LEAST = 1e-6
"""Seconds that a run takes at least: clocks have steps."""


@dataclass(slots=True)
class Pace:
    """What a worker takes for a version, in seconds: `run` from the beginning of a run to its answers, `each` for one
    request of it. They differ where requests run in batches."""

    run: float
    each: float
    at: float
    """When it was measured last."""
    variance: float = 0.0
    """Of a run."""
    samples: int = 1
    weighed: float = 0.0
    """`each` when the pools were looked at last."""
    longer: int = 0
    shorter: int = 0
    """How many of the last times in a row were far from the average."""
    lately: float = 0.0
    """The mean of those times."""

    @property
    def variation(self) -> float:
        """How much runs differ: the squared coefficient of variation, at most 4. It is 0 if all take as long, and 1 if
        how long a run has taken says nothing about when it ends."""
        return min(4.0, self.variance / self.run**2)

    @property
    def error(self) -> float:
        """By what share the average may be wrong: the standard error, or 1 after a few runs."""
        return math.sqrt(self.variation / min(self.samples, 1 / GAIN)) if self.samples >= _LOOKS[0] else 1.0

    def add(self, run: float, batch: int, now: float) -> bool:
        """Take a run of `batch` requests into account. Returns whether pools have to be looked at again."""
        run = max(run, LEAST)
        self.at = now
        self.samples += 1
        if self._is_new(run, batch):
            return True
        run = min(run, OUTLIER * self.run)
        gain = max(GAIN, 1 / self.samples)
        off = run - self.run
        self.run += off * gain
        self.variance += (off * (run - self.run) - self.variance) * gain
        self.each += (run / batch - self.each) * gain
        return self.samples in _LOOKS or not self.weighed / DRIFT <= self.each <= self.weighed * DRIFT

    def _is_new(self, run: float, batch: int) -> bool:
        """Whether the last times say that the average holds no longer; then they are the average."""
        self.longer = self.longer + 1 if run > SLOWER * self.run else 0
        self.shorter = self.shorter + 1 if run < QUICKER * self.run else 0
        count = self.longer + self.shorter
        if not count:
            return False
        self.lately = run if count == 1 else self.lately + (run - self.lately) / count
        if self.longer < STREAK[0] and self.shorter < STREAK[1]:
            return False
        self.run, self.each, self.samples = self.lately, self.lately / batch, count
        self.variance, self.longer, self.shorter = 0.0, 0, 0
        return True
