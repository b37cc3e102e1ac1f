"""One frame's run of a model on a thread of its own, which can be taken back while it waits for a worker."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeAlias

from zmq_offload.common.future_internals import fail_in_child
from zmq_offload.common.lifetime import made_before_fork, tell_of_forks
from zmq_offload.device.crew import Crew
from zmq_offload.device.turns import Turns
from zmq_offload.errors import Unavailable
from zmq_offload.protocol.payload import Array

Results: TypeAlias = "Array | tuple[Array, ...]"

OUTSTANDING = 256
"""Frames that one pipeline, or the submitted ones of one model, may have under way: each that waits for a worker takes
a thread and a VM."""

_crew = Crew("zmq-offload-run")
_current = threading.local()
_numbers = itertools.count()


class CancelScope:
    """One run of a model. The one with the lower `number` began earlier."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self._lock = threading.Lock()
        self._cancelled = False
        self._requests: set[Future[Any]] = set()

    def cancel(self) -> None:
        """Take back what it has requested, and what it will."""
        with self._lock:
            self._cancelled, requests = True, list(self._requests)
        for request in requests:
            request.cancel()

    def holds(self, request: Future[Any]) -> None:
        """A request is on behalf of this run until it is done."""
        with self._lock:
            self._requests.add(request)
            cancelled = self._cancelled
        request.add_done_callback(self._requests.discard)
        if cancelled:
            request.cancel()

    @contextmanager
    def followed(self) -> Iterator[None]:
        """In the body, what this thread does is on behalf of this run."""
        _current.scope = self
        try:
            yield
        finally:
            _current.scope = None


def current() -> CancelScope | None:
    """The run that this thread works for, if it can be taken back."""
    return getattr(_current, "scope", None)


class Run(Future[Results]):
    """The results of one frame. `cancel` works until they are there: a request on its way is taken back."""

    def __init__(self) -> None:
        super().__init__()
        self.scope = CancelScope()
        self._begun = False
        self._ended = threading.Event()
        tell_of_forks(self)

    def begin(self, execute: Callable[[], Results], turns: Turns) -> None:
        """Have it executed when there is a turn for it."""

        def begin() -> bool:
            with self._condition:  # the future's own, which its `cancel` takes
                self._begun = not self.cancelled()
            if self._begun:
                try:
                    _crew.run(lambda: self._work(execute, turns))
                except RuntimeError as error:  # no more threads
                    self._begun = False
                    self.set_exception(Unavailable(f"a run cannot start a thread: {error}"))
            else:
                self.set_running_or_notify_cancel()  # who waits by `concurrent.futures.wait` is told only by this
            return self._begun

        turns.when_free(self.scope.number, begin)

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self.scope.cancel()
        return cancelled

    def left(self) -> None:
        """Take it back if it is not done, and wait until nothing of it runs any more. (An iterator in a circle of
        references is dropped by any thread, perhaps by the one that runs this frame, which cannot wait for itself.)"""
        self.cancel()
        if self._begun and current() is not self.scope:
            self._ended.wait()

    def forget(self) -> None:
        self._begun = False  # nothing of it runs here
        fail_in_child(self, made_before_fork("model"))

    def _work(self, execute: Callable[[], Results], turns: Turns) -> None:
        # The future stays pending meanwhile, which is why it can be cancelled.
        try:
            with turns.granted(), self.scope.followed():
                results = execute()
        except BaseException as error:
            if self.set_running_or_notify_cancel():
                self.set_exception(error)
        else:
            if self.set_running_or_notify_cancel():
                self.set_result(results)
        self._ended.set()
