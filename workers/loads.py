"""Loads in progress: one at a time in the calling thread, or several in threads of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Outcome = TypeVar("Outcome")


class Loads(Generic[T, Outcome]):
    """At most `most` loads at a time, each of one thing. With one at a time, `start` returns when it has ended."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.running: set[T] = set()
        self._ended: queue.SimpleQueue[tuple[T, Outcome]] = queue.SimpleQueue()

    @property
    def room(self) -> bool:
        """Whether another load may start."""
        return len(self.running) < self._most

    def start(self, what: T, load: Callable[[], Outcome]) -> None:
        """Begin a load, which does not raise. Nobody waits for its thread when the process ends."""
        self.running.add(what)

        def run() -> None:
            self._ended.put((what, load()))

        if self._most == 1:
            run()
            return
        try:
            threading.Thread(target=run, name="load", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            run()

    def ended(self) -> tuple[T, Outcome] | None:
        """Wait for a load to end. Returns what was loaded and what came of it; None if there is none."""
        if not self.running:
            return None
        what, outcome = self._ended.get()
        self.running.remove(what)
        return what, outcome
