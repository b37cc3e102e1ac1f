"""One run of a model on a thread of its own. A run can be canceled while it waits for a worker."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeAlias

from zmq_offload.common.crew import Crew
from zmq_offload.common.future_internals import fail_in_child
from zmq_offload.common.lifetime import made_before_fork, tell_of_forks
from zmq_offload.device.remote import Reply
from zmq_offload.device.turns import Turns, Waiting
from zmq_offload.errors import Unavailable
from zmq_offload.protocol.payload import Array
from zmq_offload.runtime.ending import ENDING

Results: TypeAlias = "Array | tuple[Array, ...]"

OUTSTANDING = 256
"""The most runs that one pipeline, or `submit` of one model, may have in flight. Each run that waits for a worker takes
a thread and a virtual machine."""

_crew = Crew("zmq-offload-run")


class _Current(threading.local):
    scope: CancelScope | None = None


_current = _Current()
_numbers = itertools.count()
next_number = _numbers.__next__
"""The number of a run that begins now."""


class CancelScope:
    """What one run has requested of workers, to be canceled together. The lower `number` began earlier."""

    def __init__(self) -> None:
        self.number = next_number()
        self._lock = threading.Lock()
        self._canceled = False
        self._requests: set[Future[Reply]] = set()

    def cancel(self) -> None:
        """Cancel the requests in flight, and those that will be added."""
        with self._lock:
            self._canceled, requests = True, list(self._requests)
        for request in requests:
            request.cancel()

    def add(self, request: Future[Reply]) -> None:
        """Add a request, until it is done."""
        with self._lock:
            self._requests.add(request)
            canceled = self._canceled
        request.add_done_callback(self._requests.discard)
        if canceled:
            request.cancel()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """In the body, requests of this thread belong to this scope."""
        _current.scope = self
        try:
            yield
        finally:
            _current.scope = None


def current() -> CancelScope | None:
    """The scope to which this thread's requests belong, if there is one."""
    return _current.scope


class Run(Future[Results]):
    """The results of one run. `cancel` works until they are there: requests in flight are canceled, too."""

    def __init__(self) -> None:
        super().__init__()
        self.scope = CancelScope()
        self._beginning, self._begun = threading.RLock(), False
        self._ended = threading.Event()
        tell_of_forks(self)

    def begin(self, execute: Callable[[], Results], turns: Turns) -> None:
        """Run `execute` when there is a turn for it. If this is interrupted, the run is canceled."""

        def begin(waiting: Waiting) -> bool:
            with self._beginning:  # another thread may grant the turn, too
                if self._begun:
                    return True
                if self.done():
                    if self.cancelled():
                        with contextlib.suppress(RuntimeError):  # it was told before
                            self.set_running_or_notify_cancel()  # only this wakes `concurrent.futures.wait`
                    return False
                try:
                    _crew.run(lambda: self._work(execute, turns, waiting))
                except RuntimeError as error:  # no more threads
                    self.set_exception(Unavailable(f"a run cannot start a thread: {error}"))
                    return False
                self._begun = True
                return True

        try:
            turns.when_free(self.scope.number, begin)
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> bool:
        canceled = super().cancel()
        if canceled:
            self.scope.cancel()
        return canceled

    def abandon(self) -> None:
        """Cancel the run if it is not done, and wait until its thread has finished with it.

        Any thread may drop an iterator that is in a reference cycle, even the one of this run, which cannot wait for
        itself.
        """
        self.cancel()
        with self._beginning:
            begun = self._begun
        if begun and current() is not self.scope and not ENDING.began:
            self._ended.wait()

    def forget(self) -> None:
        """This process is a forked child: the run's thread is not in it."""
        self._beginning, self._begun = threading.RLock(), False
        fail_in_child(self, made_before_fork("model"))

    def _work(self, execute: Callable[[], Results], turns: Turns, waiting: Waiting) -> None:
        if not waiting.take():
            return
        # The future stays pending meanwhile, so that it can be canceled.
        try:
            try:
                with self.scope.entered():
                    results = execute()
            finally:
                turns.end()
        except BaseException as error:
            if self.set_running_or_notify_cancel():
                self.set_exception(error)
        else:
            if self.set_running_or_notify_cancel():
                self.set_result(results)
        self._ended.set()
