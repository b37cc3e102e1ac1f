"""Runs the attempts that the session chose, and answers each.

While a GPU computes, the inputs of the next are copied to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from workers.links import Links
from workers.loading import Model
from workers.serving import DeviceLost, Outcome, Served, begin, bounded, execute
from workers.session import Attempt, WorkerSession
from workers.shortpath import ShortPath
from zmq_offload.errors import OffloadError

_TELLING = 0.001
"""Seconds of a run from which other brokers are told of it. To tell takes them some 10 us for each."""


class Runner:
    """Runs attempts, for one thread. All that chooses them is elsewhere."""

    def __init__(self, session: WorkerSession, links: Links, short: ShortPath, clock: Callable[[], float]) -> None:
        self.served: Mapping[Model, Served] = {}
        self._session, self._links, self._short, self._clock = session, links, short, clock
        self._tells = len(session.connections) > 1
        self._lasted = 0.0  # seconds of the last run that was not short

    def run(self, attempts: list[Attempt]) -> float:
        """Run attempts together and answer each. Returns the time at which they ended. Raises DeviceLost."""
        self._prepare(attempts)
        start, kind = self._clock(), attempts[0].message[3:5]
        self._links.lend(kind)
        try:
            outcomes = execute([attempt.job for attempt in attempts])
        except DeviceLost:
            self._links.take_back(kind, self._clock() - start)
            raise
        return self._ended(attempts, outcomes, start)

    def overlaps(self, attempts: list[Attempt]) -> bool:
        """Whether the inputs of others can be copied while these run."""
        served = self.served.get(attempts[0].message[3:5])
        return served is not None and served.overlaps and attempts[0].message.attempt == 1

    def run_overlapped(self, attempts: list[Attempt], following: Callable[[], list[Attempt]], until: float) -> float:
        """Run attempts and those that come `following`, until there are none or the clock says `until`: the next are
        begun before these end. Returns the time at which the last ended. Raises DeviceLost."""
        start = self._clock()
        begun: Callable[[], list[Outcome]] | None = None
        while True:
            ahead = following() if start < until else []
            self._prepare(attempts, ahead)
            kind = attempts[0].message[3:5]
            self._links.lend(kind)
            try:
                begun = begun or begin([attempt.job for attempt in attempts])
                next_begun = begin([attempt.job for attempt in ahead]) if ahead else None
                outcomes = begun()
            except DeviceLost:
                self._links.take_back(kind, self._clock() - start)
                raise
            start = self._ended(attempts, outcomes, start)
            if next_begun is None:
                return start
            attempts, begun = ahead, next_begun

    def _prepare(self, attempts: list[Attempt], ahead: list[Attempt] = []) -> None:  # noqa: B006
        if attempts[0].message.attempt > 1:
            # If it takes this process down, too, answers that had not left would be lost, and their requests be blamed.
            self._links.settle()
        self._short.deadline = max(attempt.deadline for attempt in (*attempts, *ahead))
        if self._tells and self._lasted >= _TELLING:
            for send in self._session.tell([*attempts, *ahead]):
                self._links.send(*send)

    def _ended(self, attempts: list[Attempt], outcomes: list[Outcome], start: float) -> float:
        """Answer attempts that ran, from `start` until now. Returns the time."""
        session, links = self._session, self._links
        now = self._clock()
        lasted = now - start
        kind = attempts[0].message[3:5]
        links.take_back(kind, lasted)
        self._short.deadline = math.inf
        self._lasted = lasted
        if kind in self.served:
            self.served[kind].ran(lasted)
        batch = sum(attempt.rows for attempt in attempts)
        # At once: if the next run takes this process down, attempts that were not answered count as lost with it.
        for attempt, outcome in zip(attempts, outcomes, strict=True):
            outcome = bounded(outcome, session.max_frame_bytes, session.connections[attempt.broker].takes)
            if isinstance(outcome, OffloadError):
                links.send(*session.failed_with(attempt, outcome))
            else:
                links.send(*session.done(attempt, outcome, lasted, batch))
            batch = 0
        return now
