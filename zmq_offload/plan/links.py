"""Links as the planner sees them: one that changes, by its moments, and a range of links around one. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from zmq_offload.errors import InvalidArgument
from zmq_offload.plan.costs import Moment, Network
from zmq_offload.testing.link.trace import Trace

AROUND = 16.0
"""A range of links has from a sixteenth to sixteen times of the bandwidth."""

_MOMENTS = 30
"""How many moments of a link that changes stand for all of it, as much time for each."""

_STEPS = 8
"""The steps from the slowest link of a range to the fastest."""


class Period(NamedTuple):
    """A part of a recorded link: how long it lasts, bandwidths up and down, one-way delay, whether nothing passes."""

    seconds: float
    up: float
    down: float
    delay: float
    stalled: bool


def periods_of(trace: Trace) -> list[Period]:
    """The periods of a recorded link, from each of its moments to the next."""
    ends = [moment.seconds for moment in trace.moments[1:]] + [trace.length]
    return [
        Period(end - seconds, up, down, delay, stalled)
        for (seconds, up, down, delay, stalled), end in zip(trace.moments, ends, strict=True)
    ]


def network_of(periods: Sequence[Period]) -> Network:
    """The link whose latencies are the average ones, for items that come at any time.

    A message of n bytes takes n/bandwidth, so times add up and not bandwidths. Who meets a period without a passage
    waits for the rest of it. Raises InvalidArgument if nothing ever passes.
    """
    whole = sum(period.seconds for period in periods)
    passing = [p for p in periods if not p.stalled and p.up and p.down]
    passes = sum(p.seconds for p in passing)
    if not passes:
        raise InvalidArgument("the trace lets nothing through; expected a period without a stall")
    up, down = (passes / sum(p.seconds / getattr(p, way) for p in passing) for way in ("up", "down"))
    delay = sum(p.seconds * p.delay for p in passing) / passes
    moments = tuple(
        Moment(p.seconds / whole, *((0.0, 0.0) if p.stalled else (p.up, p.down)), 2 * p.delay) for p in periods
    )
    return Network(up, 2 * delay + _waiting(periods, whole), down, moments)


def _waiting(periods: Sequence[Period], whole: float) -> float:
    """How long an item waits on average for a passage: half of each stall, by the chance to come in it."""
    total = stall = 0.0
    for period in (*periods, Period(0.0, 1.0, 1.0, 0.0, False)):
        if period.stalled or not (period.up and period.down):
            stall += period.seconds
        else:
            total += stall * stall / 2
            stall = 0.0
    return total / whole


def links_around(network: Network) -> list[Network]:
    """Links from slow to fast that several cuts shall serve: the moments of a link that changes, or the bandwidths
    around a constant one."""
    if network.moments:
        passing = sorted((m for m in network.moments if m.up and m.down), key=lambda m: (m.up, m.down))
        until = list(accumulate(m.share for m in passing))
        places = [(at + 0.5) / _MOMENTS * until[-1] for at in range(_MOMENTS)]
        return [Network(m.up, m.rtt, m.down) for m in (passing[bisect.bisect_left(until, p)] for p in places)]
    factors = [AROUND ** (2 * step / _STEPS - 1) for step in range(_STEPS + 1)]
    return [Network(network.bandwidth * f, network.rtt, network.down * f) for f in factors]
