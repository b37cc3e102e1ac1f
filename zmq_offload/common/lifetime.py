"""The end of clients that nobody closes: they are collected, the interpreter ends, or the process is forked.

A finalizer may run in any thread and at any allocation, even in a thread that holds a lock of the object that is
finalized. So a finalizer waits for no lock; another thread disconnects.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Protocol

from zmq_offload.errors import FailedPrecondition

_AT_ONCE = 0.1
"""Seconds that a finalizer waits for the other thread, which needs about a millisecond. So files and threads are nearly
always gone together with the object."""


class Resource(Protocol):
    """The threads and sockets of a client. It must not refer to the client."""

    @property
    def forgotten(self) -> bool:
        """Whether it belongs to the process that this one was forked from."""

    def release(self) -> None:
        """Disconnect when all outstanding calls have ended, after the client was collected. Runs in its own thread."""

    def leave(self) -> None:
        """Disconnect now, without waiting for long: the interpreter ends."""

    def forget(self) -> None:
        """Let go of the resource without touching it: this is a forked child, and the parent uses it."""


class Forgetful(Protocol):
    """An object that must know that its process was forked."""

    def forget(self) -> None:
        """Called in the child. Only the thread that forked exists there, and the others may have held any lock."""


_held: weakref.WeakSet[Resource] = weakref.WeakSet()
_forgetful: weakref.WeakSet[Forgetful] = weakref.WeakSet()
_dropped: list[Resource] = []
_ending = False


def hold(owner: object, resource: Resource) -> Callable[[], object]:
    """Release `resource` when `owner` is collected. The returned function releases it at once."""
    _held.add(resource)
    finalizer = weakref.finalize(owner, _collected, resource)
    finalizer.atexit = False
    return finalizer


def tell_of_forks(one: Forgetful) -> None:
    """Call the object's `forget` in every forked child, as long as it exists."""
    _forgetful.add(one)


def warn_unclosed(owner: object, release: Callable[[], object]) -> None:
    """Release and warn, in the `__del__` of an object that nobody closed.

    Release comes first, because `warn` raises where warnings are errors, and a recorded warning keeps the object.
    """
    text = f"unclosed {owner!r}"  # before the release, which changes the repr
    release()
    if not _ending:
        warnings.warn(text, ResourceWarning, stacklevel=3, source=owner)


def shown(client: object, endpoints: Iterable[str], outstanding: int, *, closed: bool, forgotten: bool) -> str:
    """Return the `repr` of a client."""
    state = "made before a fork" if forgotten else "closed" if closed else f"{outstanding} outstanding"
    return f"<{type(client).__name__} of {', '.join(endpoints)}: {state}>"


def made_before_fork(what: str) -> FailedPrecondition:
    """Return the error for using the parent's `what` in a forked child."""
    return FailedPrecondition(
        f"this {what} was made before a fork; make one in each process, or start processes by spawn"
    )


def refuse_pickling(what: str) -> TypeError:
    """Return the error for pickling, which is a TypeError by convention."""
    return TypeError(f"{what} belongs to the process that made it and cannot be pickled; make one in each process")


def _collected(resource: Resource) -> None:
    if resource.forgotten:
        return
    done = threading.Event()
    _dropped.append(resource)
    try:
        # Not threading.Thread, which has locks that this thread may hold.
        _thread.start_new_thread(_release_all, (done,))
    except RuntimeError:  # no threads left; the next finalizer releases this resource, too
        return
    done.wait(_AT_ONCE)


def _release_all(done: threading.Event) -> None:
    try:
        while _dropped:
            _dropped.pop().release()
    except IndexError:
        pass  # another thread was faster
    finally:
        done.set()


def _leave() -> None:
    global _ending
    _ending = True
    for resource in list(_held):
        with contextlib.suppress(Exception):
            resource.leave()


def _forked() -> None:
    _dropped.clear()
    for one in [*_held, *_forgetful]:
        one.forget()


atexit.register(_leave)
os.register_at_fork(after_in_child=_forked)
