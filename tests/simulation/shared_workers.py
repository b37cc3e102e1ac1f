"""How long requests wait if several brokers share workers: `python -m tests.simulation.shared_workers`.

The real decisions of brokers and workers in simulated time. Requests come at random (Poisson), each to any of the
brokers; a message takes 0.1 ms; a run takes 5 ms, or 5 ms on average (exponential). The table has the time that a
request waits beyond the way to a worker, in runs: the mean, and the 99th percentile; with brokers that do not know what
workers hold for others, and with workers that tell them.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from broker.core import Core
from broker.events import FromClient, FromWorker, ToWorker
from broker.liveness import LivenessPolicy
from workers.policy import WorkerPolicy
from workers.session import Attempt, Send, WorkerSession
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_body

RUN = 0.005
WAY = 0.0001
BODY = [encode_body([{"name": "m", "version": 1, "inputs": [], "outputs": []}])]


class Waiting(NamedTuple):
    """Of all requests, in runs, and the Heartbeats that a request took."""

    mean: float
    p99: float
    told: float


class Worker:
    """A worker of all brokers."""

    def __init__(self, slots: int, brokers: int) -> None:
        self.session = WorkerSession.open("w", slots, brokers, WorkerPolicy(heartbeat=1e6, patience=1e9), 0.0)
        self.running: list[Attempt] = []


class Fabric:
    """Brokers that share workers. `load` is the share of the workers' time that the requests take."""

    def __init__(self, brokers: int, workers: int, load: float, *, tells: bool, varied: bool, requests: int) -> None:
        self.now = 0.0
        self._random = random.Random(7)
        self._tells, self._varied = tells, varied
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = itertools.count()
        self._arrived: dict[int, float] = {}
        self._waited: list[float] = []
        self._told = 0
        self.cores = [Core(LivenessPolicy(heartbeat=1e6, patience=1e9), 0.0) for _ in range(brokers)]
        self.workers = [Worker(2, brokers) for _ in range(workers)]
        for broker in range(brokers):
            for worker in range(workers):
                self._handle(broker, FromWorker(b"%d" % worker, wire.Announce(f"w{worker}", 2), BODY))
        at = 0.0
        for number in range(1, requests + 1):
            at += self._random.expovariate(load * workers / RUN)
            self._at(at, self._request, number)

    def run(self) -> Waiting:
        """Serve all requests."""
        while self._events:
            self.now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
        settled = sorted(self._waited[len(self._waited) // 10 :])
        return Waiting(
            statistics.mean(settled) / RUN, settled[len(settled) * 99 // 100] / RUN, self._told / len(self._arrived)
        )

    def _at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._count), act, arguments))

    def _handle(self, broker: int, event: Any) -> None:
        for action in self.cores[broker].handle(event, self.now):
            if isinstance(action, ToWorker) and isinstance(action.message, wire.Dispatch):
                self._at(self.now + WAY, self._given, broker, int(action.peer), action.message)

    def _request(self, number: int) -> None:
        self._arrived[number] = self.now
        message = wire.Request(b"s" * wire.SESSION_BYTES, number, "m", 0, 10**10, 0)
        self._handle(self._random.randrange(len(self.cores)), FromClient(b"c", message, [b"head"]))

    def _given(self, broker: int, number: int, message: wire.Dispatch) -> None:
        worker = self.workers[number]
        worker.session.given(broker, message, None, self.now)  # type: ignore[arg-type]  # nobody looks at the job
        if not worker.running:
            self._start(number)

    def _start(self, number: int) -> None:
        worker = self.workers[number]
        worker.running, _ = worker.session.next(self.now)
        self._tell(number)
        if worker.running:
            key = worker.running[0].message
            self._waited.append(max(0.0, self.now - self._arrived[key.id] - WAY))
            lasts = self._random.expovariate(1 / RUN) if self._varied else RUN
            self._at(self.now + lasts, self._ended, number)

    def _tell(self, number: int) -> None:
        worker = self.workers[number]
        for action in worker.session.tell(worker.running) if self._tells else ():
            assert isinstance(action, Send)
            self._told += 1
            self._at(self.now + WAY, self._handle, action.broker, FromWorker(b"%d" % number, action.message, ()))

    def _ended(self, number: int) -> None:
        worker = self.workers[number]
        (attempt,) = worker.running
        done = wire.Done(*attempt.message[:3], 5)
        self._at(self.now + WAY, self._handle, attempt.broker, FromWorker(b"%d" % number, done, [b"out"]))
        self._start(number)


def main() -> None:
    """Print the table."""
    print("| runs | load | workers | 1 broker | 2 brokers, not told | 2, told | 4, not told | 4, told |")
    print("|---|---|---|---|---|---|---|---|")
    for varied in (False, True):
        for load in (0.5, 0.7, 0.9):
            for workers in (4, 8):
                cells = []
                for brokers, tells in ((1, False), (2, False), (2, True), (4, False), (4, True)):
                    found = Fabric(brokers, workers, load, tells=tells, varied=varied, requests=20000).run()
                    cells.append(f"{found.mean:.2f}, {found.p99:.1f}")
                kind = "5 ms on average" if varied else "5 ms"
                print(f"| {kind} | {load} | {workers} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
