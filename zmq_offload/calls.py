"""The synchronous client's calls, from their beginning to their value."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from zmq_offload.errors import OffloadError
from zmq_offload.session import Complete, Fail

T = TypeVar("T")


class Owner(Protocol):
    """What a future needs of the client's driver."""

    def wait(self, done: Callable[[], bool], follow: Callable[[float | None], Any], until: float | None) -> None: ...

    def cancel(self, number: int) -> None: ...

    def refuse_callback(self, what: str) -> None: ...


class Call(Generic[T]):
    """A call that one thread waits for. `finish` makes its value of the message that completes it, and of the time
    that it took. (A Future has a lock, a condition and a list, which a call of 200 µs notices.)"""

    def __init__(self, finish: Callable[[Complete, float], T | OffloadError]) -> None:
        self.number = 0
        self._done = False
        self._started = time.monotonic()
        self._finish = finish
        self._value: T | OffloadError | None = None
        self._event: threading.Event | None = None

    def end(self, action: Complete | Fail) -> None:
        self._value = self._outcome(action)
        self._done = True
        # Looked at after `_done` is set, and made before it is looked at: one of the two threads sees the other.
        if self._event is not None:
            self._event.set()

    def is_done(self) -> bool:
        return self._done

    def wait(self, timeout: float | None = None) -> None:
        """Until another thread ends it."""
        self._event = threading.Event()
        if not self._done:
            self._event.wait(timeout)

    def result(self) -> T:
        value, self._value = self._value, None  # an error must not refer to itself through this frame's call
        if isinstance(value, OffloadError):
            try:
                raise value
            finally:
                del value
        return value  # type: ignore[return-value]

    def _outcome(self, action: Complete | Fail) -> T | OffloadError:
        return action.error if isinstance(action, Fail) else self._finish(action, time.monotonic() - self._started)


class Submitted(Call[T]):
    """A call whose value goes into a future, whose `cancel` reaches the broker."""

    def __init__(self, owner: Owner, finish: Callable[[Complete, float], T | OffloadError]) -> None:
        super().__init__(finish)
        self.future = CallFuture[T](owner)

    def end(self, action: Complete | Fail) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        value = self._outcome(action)
        if isinstance(value, OffloadError):
            self.future.set_exception(value)
        else:
            self.future.set_result(value)


class CallFuture(Future[T]):
    """A future whose `cancel` reaches the broker, and whose `result` helps to bring it about."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.number = 0
        self._owner = owner

    def result(self, timeout: float | None = None) -> T:
        if not self.done():
            self._owner.refuse_callback("result")
            end = None if timeout is None else time.monotonic() + timeout
            self._owner.wait(self.done, super().exception, end)
            timeout = None if end is None else max(0.0, end - time.monotonic())
        return super().result(timeout)

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._owner.cancel(self.number)
        return cancelled
