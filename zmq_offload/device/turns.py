"""Which runs compute on the device: as many at a time as there are cores for, the oldest first.

Each thread that runs a virtual machine has its own pool of TVM's threads and its own memory. Two that compute at once
on the same cores slow each other down. A run whose reply arrives continues at once, without a turn: its rest is short
if the model ends on workers. If the rest is long, the next run begins that much later.

Ctrl-C can end a method anywhere and must lose no turn. So the turns in use are not counted: they are the set of those
who hold one, and a single operation on the set takes or ends a turn and notes it. Who is interrupted calls `end`, again
if need be. Who lines up is in the line until it has begun.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import get_ident

from zmq_offload.common.lifetime import tell_of_forks


class Turns:
    """At most `places` runs begin while others compute. Of the runs that wait, the lowest number is next."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._arrivals = 0  # breaks ties: first come, first served
        self.forget()
        tell_of_forks(self)

    def forget(self) -> None:
        """Reset: no run has a turn or waits for one."""
        self._lock = threading.Lock()
        self._holders: set[object] = set()  # threads, and each `Waiting` whose thread has not come yet
        self._line: list[tuple[int, int, Waiting]] = []

    def take(self, number: Callable[[], int]) -> None:
        """Wait until this thread has a turn; its `number` is needed if it has to wait. `end` ends it, also after an
        error of `take`."""
        holders = self._holders
        holders.add(get_ident())
        if self._line or len(holders) > self._places:
            self._wait(number())

    def end(self) -> None:
        """End this thread's turn, if it has one. If this is interrupted, do it again."""
        self._holders.discard(get_ident())
        if self._line:
            self._grant()

    def leave(self) -> bool:
        """Give this thread's turn to other runs. Returns whether it had one."""
        holders, thread = self._holders, get_ident()
        if thread not in holders:
            return False
        holders.discard(thread)
        if self._line:
            self._grant()
        return True

    def resume(self) -> None:
        """Continue after `leave`, without a turn if none is free."""
        self._holders.add(get_ident())

    def pause(self) -> AbstractContextManager[None]:
        """Give this thread's turn, if it has one, to other runs in the body, which waits for something else."""
        return _Pause(self)

    def when_free(self, number: int, begin: Callable[[Waiting], bool]) -> None:
        """Call `begin` when there is a turn, at once or later from another thread, perhaps more than once. It returns
        whether it takes the turn. The thread that has the turn then calls `Waiting.take`."""
        waiting = Waiting(self, begin)
        self._line_up(number, waiting)
        try:
            self._grant()
        except BaseException:  # the turns that are free are those of others, too
            self._grant()
            raise

    def _wait(self, number: int) -> None:
        """Wait until this thread has a turn."""
        thread, granted = get_ident(), threading.Event()
        self._holders.discard(thread)

        def begin(_: Waiting) -> bool:
            granted.set()
            return True

        waiting = Waiting(self, begin, thread)
        try:
            self._line_up(number, waiting)
            self._grant()
            granted.wait()
        finally:
            with self._lock:
                waiting.gone = True

    def _line_up(self, number: int, waiting: Waiting) -> None:
        with self._lock:
            self._arrivals += 1
            heapq.heappush(self._line, (number, self._arrivals, waiting))

    def _grant(self) -> None:
        """Grant the turns that are free."""
        while (waiting := self._next()) is not None:
            if not waiting.begin(waiting):
                self._holders.discard(waiting.holder)
            waiting.begun = True

    def _next(self) -> Waiting | None:
        """Who gets a free turn and holds it now."""
        with self._lock:
            line, holders = self._line, self._holders
            while line:
                waiting = line[0][2]
                if waiting.begun or waiting.gone:
                    heapq.heappop(line)
                elif len(holders - {waiting.holder}) < self._places:
                    holders.add(waiting.holder)
                    return waiting
                else:
                    break
            return None


class Waiting:
    """A run that waits for a turn. The `holder` of its turn is a thread, or this until its thread takes it."""

    __slots__ = ("_turns", "begin", "begun", "gone", "holder")

    def __init__(self, turns: Turns, begin: Callable[[Waiting], bool], thread: int | None = None) -> None:
        self._turns, self.begin, self.begun = turns, begin, False
        self.holder: object = self if thread is None else thread
        self.gone = False
        """Whether it no longer waits. The lock of the turns guards it."""

    def take(self) -> bool:
        """Have the turn that was granted in this thread, until `Turns.end`. Returns False if another thread has it."""
        turns = self._turns
        with turns._lock:
            if self.gone:
                return False
            self.gone = True
            turns._holders.add(get_ident())
            turns._holders.discard(self.holder)
            return True


# A class, not a generator: that takes a microsecond more.
class _Pause(AbstractContextManager[None]):
    __slots__ = ("_held", "_turns")

    def __init__(self, turns: Turns) -> None:
        self._turns, self._held = turns, False

    def __enter__(self) -> None:
        self._held = self._turns.leave()

    def __exit__(self, *_: object) -> None:
        if self._held:
            self._turns.resume()
