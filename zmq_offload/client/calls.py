"""Calls of the synchronous client, from start to value."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Generic, Protocol, TypeAlias, TypeVar

from zmq_offload.client.session import Complete, Fail
from zmq_offload.common.future_internals import fail_in_child
from zmq_offload.common.lifetime import made_before_fork
from zmq_offload.errors import Internal, OffloadError, one_line

T = TypeVar("T")


class Owner(Protocol):
    """The part of the client's driver that a future needs."""

    taken: int

    def wait(self, done: Callable[[], bool], follow: Callable[[float | None], object], until: float | None) -> None: ...

    def cancel(self, number: int) -> None: ...

    def refuse_callback(self, method: str) -> None: ...


Finish: TypeAlias = Callable[[Complete, float, str], "T | OffloadError"]
"""Make a call's value from the message that completes it, the seconds that it took, and the model's name."""


class Call(Generic[T]):
    """A call that one thread waits for. A `Future` has a lock, a condition and a list, which slow a call of 200 µs."""

    __slots__ = ("_action", "_event", "_finish", "_model", "_started", "number")

    def __init__(self, finish: Finish[T], model: str = "") -> None:
        self.number = 0
        self._started = time.monotonic()
        self._finish = finish
        self._model = model
        self._action: Complete | Fail | None = None
        self._event: threading.Event | None = None

    def end(self, action: Complete | Fail) -> None:
        """Complete or fail the call."""
        self._action = action
        # `wait` makes the event and then reads `_action`; here it is the other way round. So one thread sees the other.
        if self._event is not None:
            self._event.set()

    def is_done(self) -> bool:
        return self._action is not None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until another thread ends the call."""
        self._event = threading.Event()
        if self._action is None:
            self._event.wait(timeout)

    def result(self) -> T:
        """Return the value, once, or raise the call's error."""
        action, self._action = self._action, None  # else the error would refer to itself through this frame
        assert action is not None
        value = self._outcome(action)
        if isinstance(value, OffloadError):
            try:
                raise value
            finally:
                del value, action
        return value

    def _outcome(self, action: Complete | Fail) -> T | OffloadError:
        if isinstance(action, Fail):
            return action.error
        try:
            return self._finish(action, time.monotonic() - self._started, self._model)
        except Exception as error:  # for instance MemoryError; the caller must get it
            return Internal(f"the reply cannot be read: {type(error).__name__}: {one_line(error)}")

    def forget(self) -> None:
        """Do nothing in a forked child: the thread that waits is the parent's."""


class Submitted(Call[T]):
    """A call whose value goes into a future."""

    __slots__ = ("future",)

    def __init__(self, owner: Owner, finish: Finish[T], model: str) -> None:
        super().__init__(finish, model)
        self.future = CallFuture[T](owner)

    def end(self, action: Complete | Fail) -> None:
        future = self.future
        value = self._outcome(action)
        future.ended = True
        try:
            if isinstance(value, OffloadError):
                future.set_exception(value)
            else:
                future.set_result(value)
        except InvalidStateError:  # it was canceled; `futures.wait` learns of it now
            future.set_running_or_notify_cancel()

    def is_done(self) -> bool:
        return self.future.done() and self.future.ended

    def forget(self) -> None:
        """Fail the future in a forked child: the reply goes to the parent."""
        self.future.ended = True
        fail_in_child(self.future, made_before_fork("client"))


class CallFuture(Future[T]):
    """A future whose `cancel` reaches the broker, and whose `result` drives the socket."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.number = 0
        self.ended = False  # like `done`, without a lock
        self.owner = owner

    def is_ended(self) -> bool:
        return self.ended

    def result(self, timeout: float | None = None) -> T:
        if not self.ended:
            self.owner.refuse_callback("result")
            end = None if timeout is None else time.monotonic() + float(timeout)
            self.owner.wait(self.is_ended, super().exception, end)
            timeout = None if end is None else max(0.0, end - time.monotonic())
        else:
            self.owner.taken += 1
        return super().result(timeout)

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self.ended = True
            self.owner.cancel(self.number)
        return cancelled
