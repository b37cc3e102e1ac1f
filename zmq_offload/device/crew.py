"""Threads for runs of models. They are the process's and stay, and the one that was busy last is the next to be.

TVM makes a pool of threads of its own, and memory to compute in, for each thread that runs a VM, and keeps them for as
long as the process lives. So threads are not made anew for each pipeline, and no more are used than it takes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from zmq_offload.common.lifetime import tell_of_forks


class Crew:
    """Runs jobs, each at once on a thread of its own. A job does not raise."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []  # append and pop are atomic
        tell_of_forks(self)

    def run(self, job: Callable[[], None]) -> None:
        try:
            jobs = self._idle.pop()
        except IndexError:
            jobs = queue.SimpleQueue()
            # A daemon: a run that waits for a worker does not keep the process from ending.
            threading.Thread(target=self._work, args=(jobs,), name=self._name, daemon=True).start()
        jobs.put(job)

    def forget(self) -> None:
        self._idle.clear()

    def _work(self, jobs: queue.SimpleQueue[Callable[[], None]]) -> None:
        while True:
            job = jobs.get()
            job()
            del job  # and what it refers to
            self._idle.append(jobs)
