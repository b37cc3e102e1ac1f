"""The end of the interpreter while threads are in TVM: it waits for them, and lets none in after them.

When the interpreter ends, Python ends each daemon thread that wants the GIL again, by unwinding its stack. TVM's frames
cannot be unwound: the process would abort. So threads are in TVM with a `place`, a lock that the end takes and keeps. A
thread that wants to enter later waits until the process is gone.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Protocol, TypeAlias, TypeVar

from zmq_offload.common.lifetime import tell_of_forks

PATIENCE = 10.0
"""Seconds that the end of the interpreter waits for threads in TVM, at most. TVM cannot be interrupted."""

_T = TypeVar("_T")

Place: TypeAlias = "_thread.RLock"
"""Hold it while in TVM. Its `with` is C code, which no Ctrl-C can come between."""


class Waiting(Protocol):
    """What makes threads wait in a function that TVM calls, such as a model whose regions run on workers."""

    def leave(self) -> None:
        """End what they wait for, without waiting for long: the interpreter ends."""


class _Ending:
    """Which places there are, and whether the interpreter ends."""

    def __init__(self) -> None:
        self.began = False
        """Whether the interpreter ends."""
        self.waiting: weakref.WeakSet[Waiting] = weakref.WeakSet()
        # A thread in an outer place may want an inner one, even a new one. So the inner ones are taken last.
        self._outer, self._inner = _Places(), _Places()
        self._never = threading.RLock()
        tell_of_forks(self)

    def place(self, *, calls_back: bool = False) -> Place:
        """A new place. With `calls_back`, TVM calls functions of ours there, which may enter TVM, too."""
        places = self._outer if calls_back else self._inner
        made = threading.RLock()
        places.open.add(made)
        return self._never if places.closed else made  # in this order: the end sees the place, or this sees the end

    def stay(self) -> None:
        """Once the interpreter ends, never return, except in the thread that ends it. A daemon thread that failed for
        that reason would print a traceback."""
        if self.began:
            with self._never:
                return

    def begin(self) -> None:
        """The interpreter ends: take all places."""
        self._never.acquire()
        self.began = True
        until = time.monotonic() + PATIENCE
        self._outer.closed = True
        if not self._outer.take(0.0):
            for one in _all(self.waiting):
                with contextlib.suppress(Exception):
                    one.leave()
            self._outer.take(until - time.monotonic())
        self._inner.closed = True
        self._inner.take(until - time.monotonic())

    def forget(self) -> None:
        """In a forked child: threads of the parent hold their places for ever."""
        self.began, self._never = False, threading.RLock()
        self._outer.forget()
        self._inner.forget()


class _Places:
    """Places of one kind. `closed`: nobody may enter a new one."""

    def __init__(self) -> None:
        self.open: weakref.WeakSet[Place] = weakref.WeakSet()
        self.closed = False
        self._taken: list[Place] = []

    def take(self, seconds: float) -> bool:
        """Take those that are free within some time, for good. Returns whether these are all."""
        until = time.monotonic() + seconds
        for place in _all(self.open):
            if place.acquire(timeout=max(0.0, until - time.monotonic())):
                self.open.discard(place)
                self._taken.append(place)
        return not self.open

    def forget(self) -> None:
        self.closed = False
        for place in _all(self.open):
            if place.acquire(False):
                place.release()
            else:
                self.open.discard(place)


def _all(these: Iterable[_T]) -> list[_T]:
    """A list of a set that other threads add to."""
    while True:
        with contextlib.suppress(RuntimeError):
            return list(these)


ENDING = _Ending()
atexit.register(ENDING.begin)
