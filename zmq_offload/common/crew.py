"""Threads that run models. All pipelines of the process share them, and the thread that was busy last is used next.

For each thread that runs a virtual machine, TVM makes a pool of threads and memory to compute in, and keeps them while
the process lives. So threads are kept for later runs, and no more are made than run at the same time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from zmq_offload.common.lifetime import tell_of_forks


class Crew:
    """Runs each job at once, on a thread of its own. A job must not raise."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []  # append and pop are atomic
        tell_of_forks(self)

    def run(self, job: Callable[[], None]) -> None:
        try:
            jobs = self._idle.pop()
        except IndexError:
            jobs = queue.SimpleQueue()
            jobs.put(job)  # now: after Ctrl-C in `start`, the thread would wait for it for ever
            # A daemon: a run that waits for a worker does not delay the end of the process.
            threading.Thread(target=self._work, args=(jobs,), name=self._name, daemon=True).start()
        else:
            jobs.put(job)

    def forget(self) -> None:
        self._idle.clear()

    def _work(self, jobs: queue.SimpleQueue[Callable[[], None]]) -> None:
        while True:
            job = jobs.get()
            job()
            del job  # frees what it references
            self._idle.append(jobs)
