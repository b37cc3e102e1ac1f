"""Bandwidth, delay, jitter and outages of an emulated link, as a person writes them."""

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
"""Seconds (eleven days). Much longer waits overflow."""

_OUTAGE = re.compile(r"([^:]+):([^:]+?)(?::(stall|refuse))?")


@dataclass(frozen=True, slots=True)
class Conditions:
    """Bandwidth, delay and jitter of a link.

    Parameters
    ----------
    bandwidth : float, optional
        Bits of payload per second in each direction. Default: unlimited.
    rtt : float, default 0.0
        Round-trip time in seconds. A byte travels for half of it.
    jitter : float, default 0.0
        Seconds. A byte travels longer or shorter by up to half of it.

    Examples
    --------
    >>> print(Conditions(bandwidth=100e6, rtt=0.01))
    bandwidth 100Mbit, rtt 10 ms, jitter 0 ms
    """

    bandwidth: float | None = None
    rtt: float = 0.0
    jitter: float = 0.0

    @classmethod
    def parse(cls, bandwidth_: str | None = None, rtt: str = "0ms", jitter: str = "0ms") -> Conditions:
        """Make conditions from text.

        Parameters
        ----------
        bandwidth_ : str, optional
            Such as ``"100Mbit"`` or ``"1.5Gbit"``. Default: unlimited.
        rtt, jitter : str
            Such as ``"10ms"`` or ``"250us"``.

        Returns
        -------
        Conditions

        Raises
        ------
        InvalidArgument
            A quantity has no unit or is out of range, or the jitter exceeds the delay.

        Examples
        --------
        >>> Conditions.parse("100Mbit", rtt="10ms").rtt
        0.01
        """
        found = cls(None if bandwidth_ is None else bandwidth(bandwidth_), duration(rtt), duration(jitter))
        if found.jitter > found.rtt:
            raise InvalidArgument(
                f"jitter {jitter} is more than the rtt {rtt}; use less, or bytes would arrive before they are sent"
            )
        return found

    def __str__(self) -> str:
        rate = "unlimited" if self.bandwidth is None else bandwidth_text(self.bandwidth)
        return f"bandwidth {rate}, rtt {self.rtt * 1e3:g} ms, jitter {self.jitter * 1e3:g} ms"


@dataclass(frozen=True, slots=True)
class Outage:
    """A time during which a link carries nothing.

    Parameters
    ----------
    start : float
        Seconds after the link comes up.
    seconds : float
        Length of the outage in seconds.
    kind : {"stall", "refuse"}, default "stall"
        "stall": packets are lost; connections stay and wait. "refuse": connections are reset and new ones refused.

    Examples
    --------
    >>> Link("tcp://127.0.0.1:5555", outages=[Outage(5.0, 2.0), Outage(10.0, 1.0, "refuse")])
    """

    start: float
    seconds: float
    kind: Kind = "stall"

    @classmethod
    def parse(cls, text: str) -> Outage:
        """Make an outage from text.

        Parameters
        ----------
        text : str
            ``"START:SECONDS"`` or ``"START:SECONDS:refuse"``, both in seconds.

        Returns
        -------
        Outage

        Raises
        ------
        InvalidArgument
            The text has another form, or a time is out of range.

        Examples
        --------
        >>> Outage.parse("5:2")
        Outage(start=5.0, seconds=2.0, kind='stall')
        """
        match = _OUTAGE.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            found = cls(float(match[1]), float(match[2]), "refuse" if match[3] == "refuse" else "stall")
        except ValueError:
            raise InvalidArgument(f"outage {text!r} is not START:SECONDS or START:SECONDS:refuse, as in 5:2") from None
        if not (0 <= found.start <= _LATEST and 0 < found.seconds <= _LATEST):
            raise InvalidArgument(
                f"outage {text!r} is out of range; use a start from 0, a length above 0, both at most {_LATEST:g} s"
            )
        return found


def check_alone(bandwidth_: str | None, rtt: str, outages: Sequence[object]) -> None:
    """Raises InvalidArgument if a link that follows a trace is given what the trace says."""
    for name, given in (("bandwidth", bandwidth_), ("rtt", rtt if duration(rtt) else None), ("outages", outages)):
        if given:
            raise InvalidArgument(f"{name} is given together with a trace, which says it; leave it out")


def timetable(outages: Sequence[Outage]) -> list[tuple[float, Kind | None]]:
    """List when the link changes to which state, None for up. Raises InvalidArgument for outages that overlap."""
    ordered = sorted(outages, key=lambda o: o.start)
    for before, after in itertools.pairwise(ordered):
        if after.start < before.start + before.seconds:
            raise InvalidArgument(f"the outages at {before.start:g} s and {after.start:g} s overlap")
    changes: list[tuple[float, Kind | None]] = []
    for outage in ordered:
        changes += [(outage.start, outage.kind), (outage.start + outage.seconds, None)]
    return changes
