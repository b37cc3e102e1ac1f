"""The synchronous client's calls, from their beginning to their value."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from zmq_offload.client.session import Complete, Fail
from zmq_offload.common.future_internals import fail_in_child
from zmq_offload.common.lifetime import made_before_fork
from zmq_offload.errors import Internal, OffloadError, one_line

T = TypeVar("T")


class Owner(Protocol):
    """What a future needs of the client's driver."""

    def wait(self, done: Callable[[], bool], follow: Callable[[float | None], Any], until: float | None) -> None: ...

    def cancel(self, number: int) -> None: ...

    def refuse_callback(self, what: str) -> None: ...


Finish: TypeAlias = Callable[[Complete, float, str], "T | OffloadError"]
"""Makes a call's value of the message that completes it, the seconds that it took, and the model's name."""


class Call(Generic[T]):
    """A call that one thread waits for. A Future has a lock, a condition and a list, which a call of 200 µs notices."""

    __slots__ = ("_action", "_event", "_finish", "_model", "_started", "number")

    def __init__(self, finish: Finish[T], model: str = "") -> None:
        self.number = 0
        self._started = time.monotonic()
        self._finish = finish
        self._model = model
        self._action: Complete | Fail | None = None
        self._event: threading.Event | None = None

    def end(self, action: Complete | Fail) -> None:
        self._action = action
        # Looked at after `_action` is set, and made before that is looked at: one of the two threads sees the other.
        if self._event is not None:
            self._event.set()

    def is_done(self) -> bool:
        return self._action is not None

    def wait(self, timeout: float | None = None) -> None:
        """Until another thread ends it."""
        self._event = threading.Event()
        if self._action is None:
            self._event.wait(timeout)

    def result(self) -> T:
        """Its value, once; raises its error."""
        action, self._action = self._action, None  # an error must not refer to itself through this frame's call
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
        except Exception as error:  # say, no memory is left; whoever waits must be told
            return Internal(f"the answer cannot be taken in: {type(error).__name__}: {one_line(error)}")

    def forget(self) -> None:
        """In a forked child: who waited for it is another process's thread."""


class Submitted(Call[T]):
    """A call whose value goes into a future, whose `cancel` reaches the broker."""

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
        except InvalidStateError:  # it was cancelled; whoever waits for several futures is told now
            future.set_running_or_notify_cancel()

    def forget(self) -> None:
        """In a forked child: the answer goes to the parent."""
        self.future.ended = True
        fail_in_child(self.future, made_before_fork("client"))


class CallFuture(Future[T]):
    """A future whose `cancel` reaches the broker, and whose `result` helps to bring it about."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.number = 0
        self.ended = False  # as `done`, without a lock
        self._owner = owner

    def is_ended(self) -> bool:
        return self.ended

    def result(self, timeout: float | None = None) -> T:
        if not self.ended:
            self._owner.refuse_callback("result")
            end = None if timeout is None else time.monotonic() + float(timeout)
            self._owner.wait(self.is_ended, super().exception, end)
            timeout = None if end is None else max(0.0, end - time.monotonic())
        return super().result(timeout)

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self.ended = True
            self._owner.cancel(self.number)
        return cancelled
