"""Load from several clients; every reply is checked."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np

from zmq_offload import Client, OffloadError
from zmq_offload.client.session import RetryPolicy


class Traffic:
    """`clients` clients, each with `depth` requests in flight, until `stop`. `extra`: more inputs of each request.

    Of several brokers all take the first that works, unless they `spread`.
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        *,
        clients: int = 4,
        depth: int = 4,
        timeout: float = 10.0,
        elements: int = 1000,
        extra: dict[str, Any] | None = None,
        spread: bool = False,
    ) -> None:
        self.served = 0
        self.wrong = 0
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.latencies: list[tuple[float, float]] = []
        """(time of the reply by `time.monotonic`, duration of the call) in seconds."""
        self.queued: list[float] = []
        """Seconds that each request was queued in the broker."""
        self.overdue = 0
        """Number of calls that ended more than a second after their deadline."""
        self._broker, self._depth, self._timeout = broker, depth, timeout
        self._elements, self._extra = elements, extra or {}
        self._policy = RetryPolicy(spread=spread)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    @property
    def ended(self) -> int:
        return self.served + sum(self.errors.values())

    def stop(self) -> None:
        """Send nothing more, and wait for the requests in flight."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * self._timeout + 10)
            assert not thread.is_alive(), "a client hangs"

    def longest_gap(self) -> float:
        """The longest time between two replies, in seconds."""
        times = sorted(at for at, _ in self.latencies)
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def percentile(self, share: float, *, queued: bool = False) -> float:
        """A percentile of the duration of calls, or of their time in the queue, in seconds; `share` is 0 to 1."""
        taken = sorted(self.queued if queued else [took for _, took in self.latencies])
        return taken[min(len(taken) - 1, int(share * len(taken)))] if taken else float("nan")

    def __str__(self) -> str:
        return (
            f"{self.served} served, {self.wrong} wrong, errors {dict(self.errors)}, {self.overdue} overdue, "
            f"p50 {self.percentile(0.5) * 1e3:.1f} ms, p99 {self.percentile(0.99) * 1e3:.1f} ms, "
            f"longest gap {self.longest_gap():.2f} s"
        )

    def _run(self, which: int) -> None:
        count = 0
        window: deque[tuple[int, float, Future[Any]]] = deque()
        with Client(self._broker, timeout=self._timeout, policy=self._policy) as client:
            while not self._stop.is_set() or window:
                while len(window) < self._depth and not self._stop.is_set():
                    count += 1
                    inputs = {"x": np.full(self._elements, which * 1e9 + count), **self._extra}
                    window.append((count, time.monotonic(), client.submit("echo", inputs)))
                if window:
                    self._take(which, *window.popleft())

    def _take(self, which: int, count: int, started: float, future: Future[Any]) -> None:
        try:
            outputs = future.result(self._timeout + 20)
        except OffloadError as error:
            outputs = None
            with self._lock:
                self.errors[error.code.value] += 1
                self.examples.setdefault(error.code.value, error.message)
        now = time.monotonic()
        with self._lock:
            self.overdue += now - started > self._timeout + 1
            if outputs is not None:
                self.served += 1
                self.latencies.append((now, now - started))
                self.queued.append(outputs.timings.queue)
                right = outputs["x"].shape == (self._elements,) and bool((outputs["x"] == which * 1e9 + count).all())
                self.wrong += not right


@contextmanager
def traffic(broker: str | Sequence[str], **options: Any) -> Iterator[Traffic]:
    """Load that runs while the body does."""
    running = Traffic(broker, **options)
    try:
        yield running
    finally:
        running.stop()
