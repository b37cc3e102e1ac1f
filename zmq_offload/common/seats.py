"""Which processes a supervisor starts, ends and kills, and when. Pure."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, field

from zmq_offload.common.backoff import Backoff


@dataclass(slots=True)
class _Seat:
    """One of the processes that a supervisor keeps running."""

    backoff: Backoff = field(default_factory=Backoff)
    runs: bool = False
    started: float = 0.0
    start_at: float = 0.0
    starts: int = 0
    """How many processes it has had."""
    was_ready: bool = False
    told: bool = False
    """Its process was told to end."""
    killed: bool = False


class Seats:
    """Times in seconds.

    A process that ends is started again: at once after a long life, and more slowly if it ends soon after each start.
    So is one that could not be started: that counts as an end at once.

    Parameters
    ----------
    count
        How many processes are kept running.
    must_be_ready
        A process that ends before one was ever ready in its seat cannot serve there: then all are stopped.
    patience
        Seconds that processes have to end after a stop. Those that did not are killed.
    """

    def __init__(self, count: int, *, must_be_ready: bool = False, patience: float = math.inf) -> None:
        self._seats = [_Seat() for _ in range(count)]
        self._must_be_ready = must_be_ready
        self._patience = patience
        self._kill_at = math.inf
        self.stopping = False
        self.failed = False
        """Whether a process could not serve, or did not stop as it should."""

    def due(self, now: float) -> list[int]:
        """The seats in which a process is started now."""
        if self.stopping:
            return []
        return [at for at, seat in enumerate(self._seats) if not seat.runs and now >= seat.start_at]

    def starts(self, at: int) -> int:
        """How many processes a seat has had."""
        return self._seats[at].starts

    def started(self, at: int, now: float) -> None:
        seat = self._seats[at]
        seat.runs, seat.started, seat.starts = True, now, seat.starts + 1

    def not_started(self, at: int, now: float) -> float:
        """The system did not start a process. Returns the seconds until it is tried again."""
        seat = self._seats[at]
        wait = seat.backoff.ended(0.0)
        seat.start_at = now + wait
        return wait

    def ready(self, at: int) -> None:
        self._seats[at].was_ready = True

    def ended(self, at: int, code: int, now: float) -> float | None:
        """A process ended. Returns the seconds until another is started; None: none is."""
        seat = self._seats[at]
        wait = seat.backoff.ended(now - seat.started)
        seat.runs, seat.start_at = False, now + wait
        if self.stopping:
            # One that had no handler yet ends by the signal. That is not an error.
            self.failed |= code not in (0, -signal.SIGTERM)
            return None
        if self._must_be_ready and not seat.was_ready:
            self.failed = True
            self.stop(now)
            return None
        return wait

    def stop(self, now: float) -> None:
        """Start no more processes, and end those that run."""
        if not self.stopping:
            self.stopping, self._kill_at = True, now + self._patience

    def to_tell(self) -> list[int]:
        """The seats whose processes are told to end now, once each."""
        found = [at for at, seat in enumerate(self._seats) if self.stopping and seat.runs and not seat.told]
        for at in found:
            self._seats[at].told = True
        return found

    def to_kill(self, now: float) -> list[int]:
        """The seats whose processes are killed now, once each."""
        late = now >= self._kill_at
        found = [at for at, seat in enumerate(self._seats) if late and seat.runs and not seat.killed]
        for at in found:
            self._seats[at].killed = True
        return found

    def next_deadline(self) -> float:
        """When the next process is started or killed, if nothing else happens before."""
        if self.stopping:
            return self._kill_at if any(seat.runs and not seat.killed for seat in self._seats) else math.inf
        return min((seat.start_at for seat in self._seats if not seat.runs), default=math.inf)

    @property
    def finished(self) -> bool:
        """Whether all have ended after a stop."""
        return self.stopping and not any(seat.runs for seat in self._seats)
