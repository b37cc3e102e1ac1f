"""Who computes on the device: as many runs at a time as there are cores for, the oldest first.

Each thread that runs a VM has a pool of TVM's threads, and memory to compute in, of its own: two at once on the same
cores get in each other's way. A run that comes back from a worker goes on at once, though. Its rest is short where the
model ends on workers, and where it is not, the next run begins that much later.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zmq_offload.common.lifetime import tell_of_forks


class Turns:
    """At most `places` runs begin while others compute. Of those that wait, the one with the lowest number is next."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._arrivals = 0  # breaks ties, first come first served
        self.forget()
        tell_of_forks(self)

    def forget(self) -> None:
        """Nobody has a turn, and nobody waits for one."""
        self._lock = threading.Lock()
        self._free = self._places  # below 0 while runs that came back go on
        self._waiting: list[tuple[int, int, Callable[[], bool]]] = []
        self._mine = threading.local()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait for a turn and hold it in the body."""
        with self._lock:
            at_once = self._free > 0 and not self._waiting
            self._free -= at_once
        if not at_once:
            self._wait(number)
        with self.granted():
            yield

    def _wait(self, number: int) -> None:
        """Until the turn is this thread's."""
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
        except BaseException:  # an interrupt: the turn goes to the next, now or when it is granted
            with self._lock:
                left = not granted.is_set()
            if not left:
                self._give()
            raise

    def when_free(self, number: int, begin: Callable[[], bool]) -> None:
        """Call `begin` when there is a turn for it, at once or later from another thread; it says whether it wants it
        still. Whoever it hands the turn to works in `granted`."""
        with self._lock:
            self._arrivals += 1
            heapq.heappush(self._waiting, (number, self._arrivals, begin))
        self._grant()

    @contextmanager
    def granted(self) -> Iterator[None]:
        """In the body, this thread has a turn that was granted; it ends with it."""
        self._mine.held = True
        try:
            yield
        finally:
            self._mine.held = False
            self._give()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let others have this thread's turn in the body, which waits for something else; nothing without a turn."""
        if not getattr(self._mine, "held", False):
            yield
            return
        self._give()
        try:
            yield
        finally:
            with self._lock:
                self._free -= 1

    def _give(self) -> None:
        with self._lock:
            self._free += 1
            if not self._waiting:
                return
        self._grant()

    def _grant(self) -> None:
        """Give out the turns that are free."""
        while True:
            with self._lock:
                if self._free <= 0 or not self._waiting:
                    return
                self._free -= 1
                begin = heapq.heappop(self._waiting)[2]
            if not begin():
                with self._lock:
                    self._free += 1
