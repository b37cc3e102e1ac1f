"""Links as the planner sees them: one that changes, by its moments, and a range of links around one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from zmq_offload.errors import InvalidArgument
from zmq_offload.plan.costs import Moment, Network

AROUND = 16.0
"""A range of links has from a sixteenth to sixteen times of the bandwidth."""

_STEPS = 8
"""The steps from the slowest link of a range to the fastest."""


class Period(NamedTuple):
    """A part of a recorded link: how long it lasts, bandwidths up and down, one-way delay, whether nothing passes."""

    seconds: float
    up: float
    down: float
    delay: float
    stalled: bool


COLUMNS = ("seconds", "up", "down", "delay", "stall")
"""The columns of a trace: seconds from its start, Mbit/s up and down, one-way delay in ms, 1 where nothing passes."""


def read_trace(text: str) -> list[Period]:
    """The periods of a trace as CSV. Each row holds until the next; the last one is as long as the one before it.

    Raises InvalidArgument, with the line, for anything else.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    head = ",".join(COLUMNS)
    if not lines or lines[0].strip() != head:
        raise InvalidArgument(f"line 1 is {lines[0].strip() if lines else ''!r}; expected {head}")
    rows = [_row(at, line) for at, line in enumerate(lines[1:], 2)]
    starts = [row[0] for row in rows]
    for at, (start, end) in enumerate(pairwise(starts), 3):
        if end <= start:
            raise InvalidArgument(f"line {at} is at {end:g} seconds; expected more than {start:g}")
    if not rows:
        raise InvalidArgument("the trace has no rows; expected one for each change of the link")
    lasting = [end - start for start, end in pairwise(starts)]
    lasting.append(lasting[-1] if lasting else 1.0)
    return [
        Period(seconds, up * 1e6, down * 1e6, delay / 1e3, bool(stall))
        for seconds, (_, up, down, delay, stall) in zip(lasting, rows, strict=True)
    ]


def _row(at: int, line: str) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, line.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) != len(COLUMNS) or not all(0 <= number < 1e6 for number in numbers):
        raise InvalidArgument(f"line {at} is {line.strip()!r}; expected {len(COLUMNS)} numbers from 0 to a million")
    return numbers


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
    moments = tuple(Moment(p.seconds / whole, *((p.up, p.down) if p in passing else (0.0, 0.0))) for p in periods)
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
        passing = {(m.up, m.down) for m in network.moments if m.up and m.down}
        return [Network(up, network.rtt, down) for up, down in sorted(passing)]
    factors = [AROUND ** (2 * step / _STEPS - 1) for step in range(_STEPS + 1)]
    return [Network(network.bandwidth * f, network.rtt, network.down * f) for f in factors]
