"""The levels of a load test: requests in flight, or requests begun per second."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from zmq_offload.errors import InvalidArgument

_MOST_LEVELS = 1000
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Level:
    """Either `concurrency` requests in flight at any time (closed loop), or `rate` requests begun per second, however
    long replies take (open loop). The other is 0."""

    concurrency: int = 0
    rate: float = 0.0

    def __str__(self) -> str:
        return f"{self.rate:,.10g}/s" if self.rate else f"{self.concurrency} in flight"

    def share(self, processes: int) -> list[Level]:
        """The level of each process. The shares of a concurrency are whole numbers and may be 0."""
        if self.rate:
            return [Level(rate=self.rate / processes)] * processes
        least, more = divmod(self.concurrency, processes)
        return [Level(concurrency=least + (at < more)) for at in range(processes)]


def concurrencies(text: str) -> list[Level]:
    """Levels from "1,4,16"."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 65536 for value in values):
        raise InvalidArgument(
            f"{text!r} is not a list of concurrencies; use whole numbers from 1 to 65536, e.g. 1,4,16"
        )
    return [Level(concurrency=value) for value in _once(values, text)]


def rates(text: str) -> list[Level]:
    """Levels from "100:1000:100" (from, to, step), "100,250" or "100", in requests per second."""
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            if not math.isfinite(last):
                raise ValueError
            steps = (last - first) / step if step > 0 else -1.0
            values = [first + at * step for at in range(math.floor(min(steps, _MOST_LEVELS) + 1e-9) + 1)]
        else:
            values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 1e6 for value in values):
        raise InvalidArgument(
            f"{text!r} is not a rate; use FROM:TO:STEP or a list in requests per second, e.g. 100:1000:100"
        )
    return [Level(rate=value) for value in _once(values, text)]


def _once(values: list[_Number], text: str) -> list[_Number]:
    """Each value once, in order."""
    once = list(dict.fromkeys(values))
    if len(once) > _MOST_LEVELS:
        raise InvalidArgument(f"{text!r} makes {len(once):,} levels; use at most {_MOST_LEVELS:,}")
    return once
