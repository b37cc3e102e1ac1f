"""Whether a canary, a version that is tried out, is worse than the version that it may replace. Pure.

A canary gets a share of the requests for the latest version. Who gets it is drawn by a hash of the caller, so that a
caller stays with one version, and a larger share only adds callers. The trial counts both versions' requests of a
sliding window, and ends if the canary fails more often or takes longer (docs/operations.md has the rule).
"""

from __future__ import annotations

import hashlib
from collections import deque

from broker.state import CanarySettings
from zmq_offload.errors import Status
from zmq_offload.telemetry.histograms import Buckets, Histogram

PARTS = 30
"""Parts of the window; the oldest part leaves at once."""

FAILURES = frozenset(
    status.value
    for status in (
        Status.INTERNAL,
        Status.ABORTED,
        Status.DEADLINE_EXCEEDED,
        Status.RESOURCE_EXHAUSTED,
        Status.UNAVAILABLE,
    )
)
"""Errors that speak against a version. The others are the caller's."""

BOUNDS = tuple(1e-5 * 1.1**step for step in range(170))
"""Bounds for compute times: from 10 us to 110 s, so fine that a quantile is off by a few percent at most."""


class _Count:
    """The requests of one version that ended in a part of the window."""

    __slots__ = ("compute", "ended", "failed")

    def __init__(self) -> None:
        self.ended = self.failed = 0
        self.compute = Histogram(BOUNDS)


class Trial:
    """A canary's trial. `returned` says why it is over; empty while it goes on."""

    def __init__(self, canary: CanarySettings) -> None:
        self.canary = canary
        self.returned = ""
        self._parts: deque[tuple[int, _Count, _Count]] = deque()
        """(number of the part, the canary, the others), the newest last."""
        self._judge_at = 0.0

    def draws(self, caller: bytes) -> bool:
        """Whether a caller's requests go to the canary."""
        if self.returned:
            return False
        drawn = int.from_bytes(hashlib.blake2b(caller, digest_size=8).digest(), "big")
        return drawn < self.canary.share * 2**64

    def ended(self, version: int, status: str, compute: float, now: float) -> str:
        """A request for the model ended at `version`, with `status`, after `compute` seconds in its worker (0 with an
        error). Returns why the trial ends with it; empty if it goes on."""
        failed = status in FAILURES
        if self.returned or (status != "ok" and not failed):
            return ""
        part = int(now * PARTS / self.canary.window)
        if not self._parts or self._parts[-1][0] != part:
            self._parts.append((part, _Count(), _Count()))
            while self._parts[0][0] <= part - PARTS:
                self._parts.popleft()
        _, own, others = self._parts[-1]
        count = own if version == self.canary.version else others
        count.ended += 1
        if failed:
            count.failed += 1
        else:
            count.compute.add(compute)
        if count is own and now >= self._judge_at:
            self._judge_at = now + self.canary.window / PARTS / 2
            self.returned = self._verdict()
        return self.returned

    def counts(self) -> dict[str, int]:
        """What the window holds, for the status."""
        return {
            "requests": sum(own.ended for _, own, _ in self._parts),
            "failed": sum(own.failed for _, own, _ in self._parts),
            "others": sum(others.ended for _, _, others in self._parts),
            "others_failed": sum(others.failed for _, _, others in self._parts),
        }

    def _verdict(self) -> str:
        canary, counts = self.canary, self.counts()
        if counts["requests"] < canary.min_requests:
            return ""
        compared = counts["others"] >= canary.min_requests
        rate = counts["failed"] / counts["requests"]
        usual = counts["others_failed"] / counts["others"] if compared else 0.0
        if rate > usual + canary.error_margin:
            return (
                f"{counts['failed']} of its {counts['requests']} requests failed ({rate:.1%}), and {usual:.1%} of the "
                f"others; at most {canary.error_margin:.1%} more is allowed (error_margin)"
            )
        if not compared:
            return ""
        own, others = (
            _sum([part[at].compute.buckets() for part in self._parts]).quantile(0.95)  # type: ignore[union-attr]
            for at in (1, 2)
        )
        if others and own > canary.latency_ratio * others:
            return (
                f"95 % of its requests are computed within {own * 1000:.3g} ms, of the others within "
                f"{others * 1000:.3g} ms; at most {canary.latency_ratio:g} times that is allowed (latency_ratio)"
            )
        return ""


def _sum(parts: list[Buckets]) -> Buckets:
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    return total
