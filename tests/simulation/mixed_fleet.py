"""How long requests take in fleets of workers of different speed: `python -m tests.simulation.mixed_fleet`.

The real decisions of the broker in simulated time; a message takes 0.1 ms. The table has the mean latency of the
broker's rule, and of the rule for workers that are alike (the fewest outstanding requests), as multiples of the best
assignment's.

The best assignment knows what each worker takes, pays nothing for messages, and has one queue: when a worker is free,
it gets the first request if more than so many wait. The thresholds, one for each worker, are found by search for each
fleet and load. For one quick and one slow worker the best rule is known to be of that form (Lin and Kumar, 1984).
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from broker.core import Core
from broker.events import FromClient, FromWorker, Tick, ToWorker
from broker.invariants import validate
from broker.liveness import LivenessPolicy
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_body

WAY = 0.0001
BODY = [encode_body([{"name": "m", "version": 1, "inputs": [], "outputs": []}])]
SECONDS = 0.1
"""What a run takes on a worker of speed 1."""

FLEETS: dict[str, tuple[float, ...]] = {
    "1 GPU, 4 CPUs": (20, 1, 1, 1, 1),
    "2 GPUs, 2 CPUs": (20, 10, 1, 0.5),
    "speeds 1 to 4": (4, 3.5, 3, 2.5, 2, 1.5, 1, 1),
    "1 quick, 1 slow": (4, 1),
    "4 alike": (1, 1, 1, 1),
}
LOADS = (0.3, 0.6, 0.9)


class Arrival(NamedTuple):
    """When a request comes, and how much work it is: 1 is the usual."""

    at: float
    work: float


def arrivals(number: int, rate: float, kind: str, *, bursty: bool = False, seed: int = 7) -> list[Arrival]:
    """So many requests. `kind`: the work is "fixed", "exponential", or of "two" sizes (nine of 0.5, one of 5.5)."""
    chance = random.Random(seed)
    work: dict[str, Callable[[], float]] = {
        "fixed": lambda: 1.0,
        "exponential": lambda: chance.expovariate(1.0),
        "two": lambda: 5.5 if chance.random() < 0.1 else 0.5,
    }
    found, at = [], 0.0
    while len(found) < number:
        at += chance.expovariate(rate / 8 if bursty else rate)
        found += [Arrival(at, work[kind]()) for _ in range(8 if bursty else 1)]
    return found


class Fleet:
    """A broker and its workers. `change(now, worker)` multiplies what a run takes there."""

    def __init__(
        self, speeds: Sequence[float], work: Sequence[Arrival], change: Callable[[float, int], float] = lambda *_: 1.0
    ) -> None:
        self.now = 0.0
        self._speeds, self._work, self._change = speeds, work, change
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = itertools.count()
        self.core = Core(LivenessPolicy(heartbeat=1e6, patience=1e9), 0.0)
        self._waiting: list[deque[wire.Dispatch]] = [deque() for _ in speeds]
        self._busy = [False] * len(speeds)
        self.served = [0] * len(speeds)
        self.latencies: list[float] = []
        for number in range(len(speeds)):
            self._handle(FromWorker(b"%d" % number, wire.Announce(f"w{number}", 2), BODY))
        for number, request in enumerate(work, 1):
            self._at(request.at, self._request, number)

    def run(self, *, check: bool = False) -> float:
        """Serve all requests; return the mean latency of all but the first tenth."""
        while len(self.latencies) < len(self._work):
            due = self.core.next_deadline()
            if due is not None and (not self._events or due < self._events[0][0]):
                self.now = max(self.now, due)
                self._handle(Tick())
            else:
                self.now, _, act, arguments = heapq.heappop(self._events)
                act(*arguments)
            if check:
                validate(self.core)
        return statistics.mean(self.latencies[len(self._work) // 10 :])

    def _at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._count), act, arguments))

    def _handle(self, event: Any) -> None:
        for action in self.core.handle(event, self.now):
            if isinstance(action, ToWorker) and isinstance(action.message, wire.Dispatch):
                self._at(self.now + WAY, self._given, int(action.peer), action.message)

    def _request(self, number: int) -> None:
        message = wire.Request(b"s" * wire.SESSION_BYTES, number, "m", 0, 10**12, 0)
        self._handle(FromClient(b"c", message, [b"head"]))

    def _given(self, worker: int, message: wire.Dispatch) -> None:
        self._waiting[worker].append(message)
        self._start(worker)

    def _start(self, worker: int) -> None:
        if self._busy[worker] or not self._waiting[worker]:
            return
        self._busy[worker] = True
        message = self._waiting[worker].popleft()
        lasts = self._work[message.id - 1].work * SECONDS / self._speeds[worker] * self._change(self.now, worker)
        self._at(self.now + lasts, self._ended, worker, message, lasts)

    def _ended(self, worker: int, message: wire.Dispatch, lasts: float) -> None:
        self._busy[worker] = False
        self.served[worker] += 1
        self._at(self.now + WAY, self._answered, worker, message, lasts)
        self._start(worker)

    def _answered(self, worker: int, message: wire.Dispatch, lasts: float) -> None:
        self.latencies.append(self.now - self._work[message.id - 1].at)
        self._handle(FromWorker(b"%d" % worker, wire.Done(*message[:3], int(lasts * 1e6)), [b"out"]))


def by_thresholds(speeds: Sequence[float], work: Sequence[Arrival], thresholds: Sequence[float]) -> float:
    """The mean latency of one queue: worker i is given its first request if more than `thresholds[i]` wait.

    `speeds` are in descending order, and a quicker worker goes first.
    """
    free = list(range(len(speeds)))
    ends: list[tuple[float, int]] = []
    queue: deque[Arrival] = deque()
    total, skipped, number = 0.0, len(work) // 10, 0
    coming = iter(work)
    following = next(coming, None)
    while following is not None or ends:
        if following is not None and (not ends or following.at <= ends[0][0]):
            now = following.at
            queue.append(following)
            following = next(coming, None)
        else:
            now, worker = heapq.heappop(ends)
            free.append(worker)
            free.sort()
        while queue and free:
            last = following is None and not ends
            given = next((w for w in free if len(queue) > thresholds[w] or last), None)
            if given is None:
                break
            request = queue.popleft()
            free.remove(given)
            end = now + request.work * SECONDS / speeds[given]
            heapq.heappush(ends, (end, given))
            number += 1
            if number > skipped:
                total += end - request.at
    return total / (number - skipped)


def best(speeds: Sequence[float], work: Sequence[Arrival]) -> float:
    """The mean latency of the best thresholds that a search finds: one worker at a time, the quickest has none."""
    # A good start: a worker is of use if those that are quicker need as long for the queue as it does for one request.
    faster = list(itertools.accumulate(speeds, initial=0.0))
    found = [0.0, *(max(0.0, faster[i] / speed - i) for i, speed in enumerate(speeds) if i)]
    least = by_thresholds(speeds, work, found)
    for _ in range(2):
        before = least
        for i in range(1, len(speeds)):
            for factor, more in ((0.0, 0), (0.25, 0), (0.5, 0), (0.75, 0), (1.0, -1), (1.0, 1), (1.5, 1), (2.0, 2)):
                tried = [*found[:i], max(0.0, found[i] * factor + more), *found[i + 1 :]]
                mean = by_thresholds(speeds, work, tried)
                if mean < least:
                    least, found = mean, tried
        if least > 0.995 * before:
            break
    return least


def without(speeds: Sequence[float], work: Sequence[Arrival]) -> float:
    """The mean latency if workers count as alike."""
    fleet = Fleet(speeds, work)
    fleet.core.ledger.scheduler.measured = lambda *_: False  # type: ignore[method-assign]
    return fleet.run()


def rows(requests: int, seed: int) -> Iterator[tuple[str, str, float, float, float, float]]:
    """Fleet, requests, load; the best assignment's mean latency in ms; our rule's and the old one's, against it."""
    for name, speeds in FLEETS.items():
        for kind in ("fixed", "exponential", "two", "bursts of 8"):
            for load in LOADS:
                bursty = kind == "bursts of 8"
                rate = load * sum(speeds) / SECONDS
                work = arrivals(requests, rate, "fixed" if bursty else kind, bursty=bursty, seed=seed)
                least = best(speeds, work)
                yield name, kind, load, least * 1e3, Fleet(speeds, work).run() / least, without(speeds, work) / least


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.mixed_fleet", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--requests", type=int, default=10000, help="of each row (default 10000)")
    parser.add_argument("--seed", type=int, default=7, help="of the arrivals (default 7)")
    args = parser.parse_args()
    print("| fleet | requests | load | best assignment | this rule | fewest outstanding |")
    print("|---|---|---|---|---|---|")
    for name, kind, load, least, ours, old in rows(args.requests, args.seed):
        print(f"| {name} | {kind} | {load:.0%} | {least:.2f} ms | {ours:.2f}x | {old:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
