"""When another thread takes the worker's connections over, because a run takes long. Pure.

Most runs are short. For those nothing is done but to count them; a thread that watches looks at the count some times a
second, and seldom when nothing has run for a while, so that a short run wakes nobody.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable

LONG = 0.005
"""Seconds from which a run is long."""

LOOK_EVERY = 0.02
"""Seconds between two looks at a worker that runs attempts."""

REST = 0.5
"""Seconds, at most, until the next look at a worker that does not. A run that takes long against all expectation is
found so much later, which is soon enough for the broker's patience."""


class Turn(enum.Enum):
    """What the thread that watches does next."""

    TAKE = "take"
    """Take the connections over until the run ends."""
    LOOK = "look"
    """Look again after LOOK_EVERY."""
    REST = "rest"
    """Look again after REST, or when a run begins that is expected to be long."""


class Runs:
    """Counts runs, and remembers how long those of each kind last."""

    def __init__(self) -> None:
        self.count = 0
        """Runs that began and runs that ended: odd during a run."""
        self._seen = 0
        self._lasted: dict[Hashable, float] = {}

    def expected(self, kind: Hashable) -> float:
        """How many seconds a run of this kind will last: as many as the last one. The first may last for any time."""
        return self._lasted.get(kind, LONG)

    def lasted(self, kind: Hashable, seconds: float) -> None:
        self._lasted[kind] = seconds

    def forget(self) -> None:
        """Forget the kinds: others are run from now on."""
        self._lasted.clear()

    def look(self, *, long: bool) -> Turn:
        """What to do. `long`: the run is expected to be, or there is something to be sent meanwhile."""
        seen, self._seen = self._seen, self.count
        if self._seen % 2:
            return Turn.TAKE if long or seen == self._seen else Turn.LOOK
        return Turn.REST if seen == self._seen else Turn.LOOK
