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
        self._served: Mapping[Model, Served] = {}
        self.overlapping: frozenset[Model] = frozenset()
        """The versions that can begin a run before the last one ended."""
        self._session, self._links, self._short, self._clock = session, links, short, clock
        self._tells = len(session.connections) > 1
        self._lasted = 0.0  # seconds of the last run that was not short

    def serve(self, served: Mapping[Model, Served]) -> None:
        """These versions are served from now on."""
        self._served = served
        self.overlapping = frozenset(model for model, version in served.items() if version.overlaps)

    def run(self, attempts: list[Attempt]) -> float:
        """Run attempts together and answer each. Returns the time at which they ended. Raises DeviceLost."""
        first = attempts[0].message
        if first.attempt > 1:
            # If it takes this process down, too, answers that had not left would be lost, and their requests be blamed.
            self._links.settle()
        self._expect(attempts)
        kind = first[3:5]
        start = self._clock()
        self._links.lend(kind)
        try:
            outcomes = execute([attempt.job for attempt in attempts])
        except DeviceLost:
            self._links.take_back(kind, self._clock() - start)
            raise
        return self._ended(kind, attempts, outcomes, start)

    def overlaps(self, attempts: list[Attempt]) -> bool:
        """Whether the inputs of others can be copied while these run."""
        first = attempts[0].message
        return first[3:5] in self.overlapping and first.attempt == 1

    def run_overlapped(self, attempts: list[Attempt], following: Callable[[], list[Attempt]], until: float) -> float:
        """Run attempts and those that come `following`, until there are none or the clock says `until`: the next are
        begun before these end. Returns the time at which the last ended. Raises DeviceLost."""
        begun: Callable[[], list[Outcome]] | None = None
        start = 0.0
        while True:
            ahead = following() if self._clock() < until else []
            self._expect([*attempts, *ahead])
            kind = attempts[0].message[3:5]
            start = start or self._clock()
            self._links.lend(kind)
            try:
                begun = begun or begin([attempt.job for attempt in attempts])
                next_begun = begin([attempt.job for attempt in ahead]) if ahead else None
                outcomes = begun()
            except DeviceLost:
                self._links.take_back(kind, self._clock() - start)
                raise
            start = self._ended(kind, attempts, outcomes, start)
            if next_begun is None:
                return start
            attempts, begun = ahead, next_begun

    def _expect(self, attempts: list[Attempt]) -> None:
        """Set a deadline for attempts that run now, and tell other brokers of them if that may take long."""
        self._short.deadline = max([attempt.deadline for attempt in attempts])
        if self._tells and self._lasted >= _TELLING:
            for send in self._session.tell(attempts):
                self._links.send(*send)

    def _ended(self, kind: Model, attempts: list[Attempt], outcomes: list[Outcome], start: float) -> float:
        """Answer attempts that ran, from `start` until now. Returns the time."""
        session, links = self._session, self._links
        now = self._clock()
        lasted = now - start
        links.take_back(kind, lasted)
        self._short.deadline = math.inf
        self._lasted = lasted
        if (served := self._served.get(kind)) is not None:
            served.ran(lasted)
        batch = sum([attempt.rows for attempt in attempts])
        # At once: if the next run takes this process down, attempts that were not answered count as lost with it.
        for attempt, outcome in zip(attempts, outcomes, strict=True):
            outcome = bounded(outcome, session.max_frame_bytes, session.connections[attempt.broker].takes)
            if isinstance(outcome, OffloadError):
                links.send(*session.failed_with(attempt, outcome))
            else:
                links.send(*session.done(attempt, outcome, lasted, batch))
            batch = 0
        return now
