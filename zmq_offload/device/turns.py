"""Which runs compute on the device: as many at a time as there are cores for, the oldest first.

Each thread that runs a virtual machine has its own pool of TVM's threads and its own memory. Two that compute at once
on the same cores slow each other down. A run whose reply arrives continues at once, without a turn: its rest is short
if the model ends on workers. If the rest is long, the next run begins that much later.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from zmq_offload.common.lifetime import tell_of_forks


class _Mine(threading.local):
    held = False
    """Whether this thread has a turn."""


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
        self._free = self._places  # below 0 while runs continue without a turn
        self._waiting: list[tuple[int, int, Callable[[], bool]]] = []
        self._mine = _Mine()

    def turn(self, number: int) -> AbstractContextManager[None]:
        """Wait for a turn and hold it in the body."""
        return _Turn(self, number)

    def take(self, number: int) -> None:
        """Wait until this thread has a turn. `end` ends it."""
        with self._lock:
            at_once = self._free > 0 and not self._waiting
            self._free -= at_once
        if not at_once:
            self._wait(number)
        self._mine.held = True

    def end(self) -> None:
        """End this thread's turn."""
        self._mine.held = False
        with self._lock:
            self._free += 1
            if not self._waiting:
                return
        self._grant()

    def _wait(self, number: int) -> None:
        """Wait until this thread has a turn."""
        granted = threading.Event()
        left = False

        def begin() -> bool:
            with self._lock:
                if not left:
                    granted.set()
                return not left

        self.when_free(number, begin)
        try:
            granted.wait()
        except BaseException:  # an interrupt: the turn goes to the next run, now or when it is granted
            with self._lock:
                left = not granted.is_set()
            if not left:
                self._give()
            raise

    def when_free(self, number: int, begin: Callable[[], bool]) -> None:
        """Call `begin` when there is a turn, at once or later from another thread. `begin` returns whether it takes the
        turn. The thread that uses the turn works in `granted`."""
        with self._lock:
            self._arrivals += 1
            heapq.heappush(self._waiting, (number, self._arrivals, begin))
        self._grant()

    def granted(self) -> AbstractContextManager[None]:
        """In the body, this thread has the turn that was granted. The turn ends with the body."""
        return _Turn(self, None)

    def hold(self) -> None:
        """Note that this thread has the turn that was granted. `end` ends it."""
        self._mine.held = True

    def pause(self) -> AbstractContextManager[None]:
        """Give this thread's turn, if it has one, to other runs in the body, which waits for something else."""
        return _Pause(self)

    def leave(self) -> bool:
        """Give this thread's turn to other runs. Returns whether it had one."""
        if not self._mine.held:
            return False
        with self._lock:
            self._free += 1
            if not self._waiting:
                return True
        self._grant()
        return True

    def resume(self) -> None:
        """Continue after `leave`, without a turn if none is free."""
        with self._lock:
            self._free -= 1

    def _give(self) -> None:
        with self._lock:
            self._free += 1
            if not self._waiting:
                return
        self._grant()

    def _grant(self) -> None:
        """Grant the turns that are free."""
        while True:
            with self._lock:
                if self._free <= 0 or not self._waiting:
                    return
                self._free -= 1
                begin = heapq.heappop(self._waiting)[2]
            if not begin():
                with self._lock:
                    self._free += 1


# Classes, not generators: those take a microsecond more.
class _Turn(AbstractContextManager[None]):
    """A turn, taken when the body begins; without a number, one that was granted."""

    __slots__ = ("_number", "_turns")

    def __init__(self, turns: Turns, number: int | None) -> None:
        self._turns, self._number = turns, number

    def __enter__(self) -> None:
        if self._number is None:
            self._turns.hold()
        else:
            self._turns.take(self._number)

    def __exit__(self, *_: object) -> None:
        self._turns.end()


class _Pause(AbstractContextManager[None]):
    __slots__ = ("_held", "_turns")

    def __init__(self, turns: Turns) -> None:
        self._turns, self._held = turns, False

    def __enter__(self) -> None:
        self._held = self._turns.leave()

    def __exit__(self, *_: object) -> None:
        if self._held:
            self._turns.resume()
