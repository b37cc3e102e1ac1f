"""Whether a region runs on a worker or on this device, by the time that each took lately. Pure: times are passed in.

Every call measures the place in use. A probe now and then measures the other place. The place changes when the other is
clearly faster for a while, so that noise changes nothing, and at once when workers stop replying.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

UNKNOWN = 1.0
"""Seconds to wait for a worker before anything was measured, as TCP waits for a first acknowledgment (RFC 6298)."""

LEAST = 0.05
"""The least seconds to wait for a worker in use. Below that, the delay is the scheduler's and not the link's."""

BETTER = 0.8
"""The other place is clearly faster if it takes at most this share of the time."""

HOLD = 1.0
"""Seconds for which it must stay faster, with `FRESH` probes that agree, before the place changes."""

FRESH = 2
KNOWN = 3
"""Samples after which the time of a place counts as known."""

MISSES = 2
"""Failed calls in a row, each begun after the one before it failed, until workers count as lost."""

EVERY, RARELY = 1.0, 60.0
"""The least and the most seconds between probes."""

SHARE = 0.02
"""The share of the time that probes may cost: a much slower place is tried less often."""


class Decision(NamedTuple):
    """Where to run a call. `patience`: seconds to wait for a worker. `probe`: the call measures the other place."""

    remote: bool
    patience: float
    probe: bool


@dataclass(slots=True)
class Estimate:
    """Moving averages of a time in seconds and of its deviation, as TCP keeps them of its round trips (RFC 6298)."""

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
    """For one region: call `decide` before each call, and after it one of `took`, `missed` and `abandoned`."""

    def __init__(self) -> None:
        self.remote = True
        """Whether workers are in use."""
        self._worker = Estimate()
        self._local = Estimate()
        self._misses = 0
        self._missed_at = 0.0
        self._probe_at = 0.0
        self._probing = False
        self._better_since: float | None = None
        self._fresh = 0  # probes since `_better_since`

    def decide(self, now: float) -> Decision:
        probe = now >= self._probe_at and not self._probing
        self._probing |= probe
        remote = self.remote != probe
        return Decision(remote, self._patience(probe), probe)

    def took(self, decision: Decision, seconds: float, now: float) -> bool:
        """A call took `seconds` where it was decided to run. Returns whether the place changes."""
        (self._worker if decision.remote else self._local).add(seconds)
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
        """A worker failed a call, or did not reply within its patience. Returns whether the place changes."""
        if decision.probe:
            self._probing = False
            self._worker = Estimate()  # its measurements no longer hold
            self._better_since = None
            self._probe_at = now + self._pause(waited)
            return False
        if now - waited >= self._missed_at:  # otherwise the same event failed several calls
            self._misses += 1
            self._missed_at = now
        if not self.remote or self._misses < MISSES:
            return False
        self._worker = Estimate()
        return self._change(now)

    def abandoned(self, decision: Decision) -> None:
        """A call was canceled, or failed on this device. That measures nothing."""
        if decision.probe:
            self._probing = False

    def fell_back(self, seconds: float) -> None:
        """A call that a worker missed took `seconds` on this device."""
        self._local.add(seconds)

    def _patience(self, probe: bool) -> float:
        """Seconds to wait for a worker.

        A worker that is only probed is of use if it is faster than this device. A worker in use may take as long as its
        late replies do, and as long as this device would: giving up earlier gains nothing.
        """
        local = self._local.mean
        if probe:
            return local if self._local.samples else UNKNOWN
        if not self._worker.samples:
            return max(UNKNOWN, local)
        return max(self._worker.mean + 4 * self._worker.deviation, 2 * self._worker.mean, local, LEAST)

    def _weigh(self, now: float) -> bool:
        used, other = (self._worker, self._local) if self.remote else (self._local, self._worker)
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
        """When to probe again, after a probe that took `probe` seconds."""
        used, other = (self._worker, self._local) if self.remote else (self._local, self._worker)
        if other.samples < KNOWN:
            self._probe_at = now
        elif self._better_since is not None:
            self._probe_at = now + HOLD / 4
        else:
            self._probe_at = max(self._probe_at, now + self._pause(probe - used.mean))

    def _pause(self, cost: float) -> float:
        return min(max(EVERY, cost / SHARE), RARELY)
