"""Whether an offloaded part runs on a worker or here, by what both have taken lately. Pure: times are passed in.

The way that is in use is measured by every call, the other by a probe now and then. The ways are changed when the other
is clearly better for a while, so that noise changes nothing, and at once when workers do not answer any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

UNKNOWN = 1.0
"""Seconds to wait for a worker while nothing is known of it: what TCP waits for a first acknowledgement (RFC 6298)."""

LEAST = 0.05
"""Seconds that a worker in use gets at least: below that it is the scheduler that is late and not the link."""

BETTER = 0.8
"""The other way is clearly better if it takes at most this share of the time."""

HOLD = 1.0
"""Seconds for which it must stay so, and `FRESH` probes must have agreed, before the ways are changed."""

FRESH = 2
KNOWN = 3
"""Samples from which on a way counts as known."""

MISSES = 2
"""Calls in a row that a worker fails, each begun after the one before it failed, until it counts as lost."""

EVERY, RARELY = 1.0, 60.0
"""Seconds between probes, at least and at most."""

SHARE = 0.02
"""Share of the time that probing may cost: a way that takes much longer is tried less often."""


class Decision(NamedTuple):
    """Where to run a call. `patience`: seconds to wait for a worker. `probe`: it is for measuring the other way."""

    remote: bool
    patience: float
    probe: bool


@dataclass(slots=True)
class Estimate:
    """A moving average of seconds, and of the deviation from it, as TCP keeps of its round trips (RFC 6298)."""

    mean: float = 0.0
    deviation: float = 0.0
    samples: int = 0

    def add(self, seconds: float) -> None:
        if not self.samples:
            self.mean, self.deviation = seconds, seconds / 2
        else:
            gain = max(1 / 8, 1 / (self.samples + 1))
            self.deviation += (abs(seconds - self.mean) - self.deviation) / 4
            self.mean += (seconds - self.mean) * gain
        self.samples += 1


class Choice:
    """For one offloaded part: `decide` before each call, then `took` or `missed`."""

    def __init__(self) -> None:
        self.remote = True
        """The way in use."""
        self._worker = Estimate()
        self._here = Estimate()
        self._misses = 0
        self._missed_at = 0.0
        self._probe_at = 0.0
        self._probing = False
        self._better_since: float | None = None
        self._fresh = 0  # probes since then

    def decide(self, now: float) -> Decision:
        probe = now >= self._probe_at and not self._probing
        self._probing |= probe
        remote = self.remote != probe
        return Decision(remote, self._patience(probe), probe)

    def took(self, decision: Decision, seconds: float, now: float) -> bool:
        """A call was answered within so much time where it was decided to run. Whether the ways change."""
        (self._worker if decision.remote else self._here).add(seconds)
        if decision.remote:
            self._misses = 0
        if decision.probe:
            self._fresh += 1
        changed = self._weigh(now)
        if decision.probe:
            self._probing = False
            self._plan(seconds, now)
        return changed

    def missed(self, decision: Decision, waited: float, now: float) -> bool:
        """A worker failed a call, or did not answer within its patience. Whether the ways change."""
        if decision.probe:
            self._probing = False
            self._worker = Estimate()  # what it was is no longer so
            self._better_since = None
            self._probe_at = now + self._pause(waited)
            return False
        if now - waited >= self._missed_at:  # else the same moment has hit several at once
            self._misses += 1
            self._missed_at = now
        if not self.remote or self._misses < MISSES:
            return False
        self._worker = Estimate()
        return self._change(now)

    def came_to_nothing(self, decision: Decision) -> None:
        """A call was taken back, or failed on this machine, which says nothing of its way."""
        if decision.probe:
            self._probing = False

    def fell_back(self, seconds: float) -> None:
        """A call that a worker missed was computed here in so much time."""
        self._here.add(seconds)

    def _patience(self, probe: bool) -> float:
        """A worker that is only probed must be faster than this machine to be of use. One in use gets what its answers
        take when they are late, and at least as long as it would take here: nothing is gained by giving up earlier."""
        here = self._here.mean
        if probe:
            return here if self._here.samples else UNKNOWN
        if not self._worker.samples:
            return max(UNKNOWN, here)
        return max(self._worker.mean + 4 * self._worker.deviation, 2 * self._worker.mean, here, LEAST)

    def _weigh(self, now: float) -> bool:
        used, other = (self._worker, self._here) if self.remote else (self._here, self._worker)
        if other.samples < KNOWN or not used.samples or other.mean > BETTER * used.mean:
            self._better_since = None
            return False
        if self._better_since is None:
            self._better_since, self._fresh = now, 0
            self._probe_at = min(self._probe_at, now + HOLD / 4)
        return now - self._better_since >= HOLD and self._fresh >= FRESH and self._change(now)

    def _change(self, now: float) -> bool:
        self.remote = not self.remote
        self._better_since, self._misses = None, 0
        self._probe_at = now + EVERY
        return True

    def _plan(self, probe: float, now: float) -> None:
        """When to probe again, after a probe of so many seconds."""
        used, other = (self._worker, self._here) if self.remote else (self._here, self._worker)
        if other.samples < KNOWN:
            self._probe_at = now
        elif self._better_since is not None:
            self._probe_at = now + HOLD / 4
        else:
            self._probe_at = max(self._probe_at, now + self._pause(probe - used.mean))

    def _pause(self, cost: float) -> float:
        return min(max(EVERY, cost / SHARE), RARELY)
