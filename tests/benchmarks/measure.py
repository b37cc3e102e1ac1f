"""Interleaved round trips in one run, medians, and CPU time of processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Call = Callable[[], object]


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, in nanoseconds (which /proc does not have)."""
    return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3)


@dataclass
class Series:
    """The round trips of one peer with one size, in seconds, and the CPU time of the watched process."""

    times: list[float] = field(default_factory=list)
    cpu: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def cpu_each(self) -> float:
        return self.cpu / len(self.times)


def interleave(
    calls: Mapping[str, Call], watched: Mapping[str, Sequence[int]], *, seconds: float, block: float = 0.1
) -> dict[str, Series]:
    """Call the peers in turns, for `block` seconds each, until `seconds` are over.

    Whatever else the machine does then falls on all of them alike. `watched` names the processes whose CPU time counts
    for a peer, its broker for instance.
    """
    series = {name: Series() for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    clock = time.perf_counter
    end = clock() + seconds
    while clock() < end:
        for name, call in calls.items():
            call()  # what the peer before left in the caches is not this one's
            pids = watched.get(name, ())
            before = sum(map(cpu_seconds, pids))
            until = clock() + block
            own = series[name].times
            while True:
                start = clock()
                call()
                now = clock()
                own.append(now - start)
                if now >= until:
                    break
            series[name].cpu += sum(map(cpu_seconds, pids)) - before
    return series
