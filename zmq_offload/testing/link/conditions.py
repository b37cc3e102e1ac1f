"""What a link is like, as a person says it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zmq_offload.common.units import bandwidth, bandwidth_text, duration
from zmq_offload.errors import InvalidArgument

Kind = Literal["stall", "refuse"]

_LATEST = 1e6
"""Seconds: eleven days. Waiting for much longer overflows."""

_OUTAGE = re.compile(r"([^:]+):([^:]+?)(?::(stall|refuse))?")


@dataclass(frozen=True, slots=True)
class Conditions:
    """A link's conditions; the bandwidth is each way's own.

    `bandwidth` is in bits of payload a second, None for as fast as it goes. `rtt` and `jitter` are in seconds: a byte
    is under way for half of `rtt`, more or less by up to half of `jitter`.
    """

    bandwidth: float | None = None
    rtt: float = 0.0
    jitter: float = 0.0

    @classmethod
    def parse(cls, bandwidth_: str | None = None, rtt: str = "0ms", jitter: str = "0ms") -> Conditions:
        """Of "100Mbit", "10ms", "1ms". Raises InvalidArgument saying what is wrong, and for more jitter than delay."""
        found = cls(None if bandwidth_ is None else bandwidth(bandwidth_), duration(rtt), duration(jitter))
        if found.jitter > found.rtt:
            raise InvalidArgument(
                f"jitter {jitter} is more than the rtt {rtt}: bytes would arrive before they are sent"
            )
        return found

    def __str__(self) -> str:
        rate = "unlimited" if self.bandwidth is None else bandwidth_text(self.bandwidth)
        return f"bandwidth {rate}, rtt {self.rtt * 1e3:g} ms, jitter {self.jitter * 1e3:g} ms"


@dataclass(frozen=True, slots=True)
class Outage:
    """`start` and `seconds` are in seconds; `start` counts from when the link comes up.

    "stall": packets vanish, connections stay and wait. "refuse": connections are reset, new ones refused.
    """

    start: float
    seconds: float
    kind: Kind = "stall"

    @classmethod
    def parse(cls, text: str) -> Outage:
        """Of "START:SECONDS" or "START:SECONDS:refuse", both in seconds. Raises InvalidArgument otherwise."""
        match = _OUTAGE.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            found = cls(float(match[1]), float(match[2]), "refuse" if match[3] == "refuse" else "stall")
        except ValueError:
            raise InvalidArgument(f"outage {text!r} is not START:SECONDS or START:SECONDS:refuse, as in 5:2") from None
        if not (0 <= found.start <= _LATEST and 0 < found.seconds <= _LATEST):
            raise InvalidArgument(
                f"outage {text!r}: it starts at 0 seconds or later, lasts more than 0, and neither is over {_LATEST:g}"
            )
        return found


def timetable(outages: Sequence[Outage]) -> list[tuple[float, Kind | None]]:
    """When the link goes to which state, None for up, in order of time. Raises InvalidArgument for outages that
    overlap."""
    ordered = sorted(outages, key=lambda o: o.start)
    for before, after in itertools.pairwise(ordered):
        if after.start < before.start + before.seconds:
            raise InvalidArgument(f"the outages at {before.start:g} s and {after.start:g} s overlap")
    changes: list[tuple[float, Kind | None]] = []
    for outage in ordered:
        changes += [(outage.start, outage.kind), (outage.start + outage.seconds, None)]
    return changes
