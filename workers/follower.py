"""Follows the repository in a thread of its own, so that requests do not wait while a version loads."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from workers.deployment import Deployment, Loader
from workers.loading import Turn
from zmq_offload.common.memory import trim

log = logging.getLogger("workers")

_NICER = 5
"""How much the thread's nice value is above that of the worker's other threads."""

_RETRY = 0.05
"""Seconds between two attempts to take the turn."""


_PATIENCE = 2.0
"""Seconds for which a worker that starts waits for all versions, before it serves those that are loaded. A broker that
is new holds requests that long for models that nobody serves yet."""


class Follower(threading.Thread):
    """Refreshes a deployment every `every` seconds until `end`, the first time `every` seconds after `start`.

    With `at_once`, it begins with a refresh by the deployment's own loader, for which no other worker waits, and which
    runs so many loads at a time: nothing is served yet that loading could slow down.
    """

    def __init__(self, deployment: Deployment, root: Path, every: float, load: Loader, at_once: int = 0) -> None:
        super().__init__(name="follower", daemon=True)
        self._deployment, self._root, self._every, self._load = deployment, root, every, load
        self._at_once = at_once
        self._begun = threading.Event()
        self._ended = threading.Event()
        self.busy = False

    def wait(self) -> None:
        """Wait for the first refresh; after `_PATIENCE`, for the first version that it loads."""
        if not self._begun.wait(_PATIENCE):
            while not self._deployment.executors and not self._begun.wait(_RETRY):
                pass

    def end(self) -> None:
        """Load nothing more. A load in progress cannot be stopped; `busy` says whether there is one."""
        self._ended.set()

    def run(self) -> None:
        if self._at_once:
            self._refresh(partial(self._deployment.refresh, stopped=self._ended.is_set, at_once=self._at_once))
            self._begun.set()
            trim()  # what the threads of the loads have left
        with suppress(OSError):
            # On Linux each thread has its own priority. This one gives it a third of the usual weight. With less, as
            # with SCHED_IDLE, it could stop for seconds on a busy machine while it holds Python's global lock, and the
            # serving thread would wait for that.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICER)
        refresh = partial(
            self._deployment.refresh, self._load, lambda: turn(self._root, self._ended.is_set), self._ended.is_set
        )
        while not self._ended.wait(self._every):
            self._refresh(refresh)

    def _refresh(self, refresh: Callable[[], bool]) -> None:
        self.busy = True
        try:
            refresh()
        except Exception:
            log.exception("scan of the repository failed; trying again in %g s", self._every)
        finally:
            self.busy = False


@contextmanager
def turn(root: Path, stopped: Callable[[], bool]) -> Iterator[None]:
    """Wait until no other worker of this machine loads from the repository, and keep others waiting in the body.

    The turn is a lock on the repository's folder. That needs no permission to write, and the system releases the lock
    when its holder dies. If the file system has no locks, or the folder is gone, there is no wait.
    """
    waiting = Turn()
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield
        return
    try:
        while not stopped() and not waiting.granted(_locked(folder), time.monotonic()):
            time.sleep(_RETRY)
        yield
    finally:
        os.close(folder)


def _locked(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
