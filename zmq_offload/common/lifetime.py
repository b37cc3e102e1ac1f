"""What becomes of a client that nobody closes: it is collected, or open when the interpreter ends, or copied into a
forked child.

A finalizer may run in any thread and at any allocation, even in a thread that holds a lock of what it finalizes. So it
waits for no lock: another thread disconnects.
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
from typing import Any, Protocol

from zmq_offload.errors import FailedPrecondition

_AT_ONCE = 0.1
"""Seconds that a finalizer waits for the other thread, so that files and threads are nearly always gone when the object
is. It takes about a millisecond."""


class Resource(Protocol):
    """What a client holds: threads, sockets. It must not refer to the client."""

    @property
    def forgotten(self) -> bool:
        """Whether it belongs to the process that this one was forked from."""

    def release(self) -> None:
        """The client was collected: disconnect, when what is outstanding has ended. Runs in a thread of its own."""

    def leave(self) -> None:
        """The interpreter ends: disconnect now, and wait for nothing that may take long."""

    def forget(self) -> None:
        """This process was forked, and the resource is the parent's: let go of it without touching it."""


class Forgetful(Protocol):
    """What must know that this process was forked."""

    def forget(self) -> None:
        """In the child: only the thread that forked is here, and any lock may be held by another one's ghost."""


_held: weakref.WeakSet[Any] = weakref.WeakSet()
_forgetful: weakref.WeakSet[Any] = weakref.WeakSet()
_dropped: list[Resource] = []
_ending = False


def hold(owner: object, resource: Resource) -> Callable[[], object]:
    """See to it that `resource` does not outlive `owner`; what is returned releases it now."""
    _held.add(resource)
    finalizer = weakref.finalize(owner, _collected, resource)
    finalizer.atexit = False
    return finalizer


def tell_of_forks(one: Forgetful) -> None:
    """Have its `forget` called in a child, as long as it is referred to."""
    _forgetful.add(one)


def warn_unclosed(owner: object, release: Callable[[], object]) -> None:
    """For the `__del__` of an object that nobody closed. Released first: whoever records the warning holds the object,
    and where warnings are errors it raises."""
    text = f"unclosed {owner!r}"  # releasing it makes it a closed one
    release()
    if not _ending:
        warnings.warn(text, ResourceWarning, stacklevel=3, source=owner)


def shown(client: object, endpoints: Iterable[str], outstanding: int, *, closed: bool, forgotten: bool) -> str:
    """The `repr` of a client."""
    state = "made before a fork" if forgotten else "closed" if closed else f"{outstanding} outstanding"
    return f"<{type(client).__name__} of {', '.join(endpoints)}: {state}>"


def made_before_fork(what: str) -> FailedPrecondition:
    """The error of every use of the parent's `what` in a forked child."""
    return FailedPrecondition(
        f"this {what} was made before a fork; make it after the fork, in each process, or start processes by spawn"
    )


def refuse_pickling(what: str) -> TypeError:
    """`pickle` expects a TypeError."""
    return TypeError(f"{what} belongs to the process that made it and cannot be pickled; make one in each process")


def _collected(resource: Resource) -> None:
    if resource.forgotten:
        return
    done = threading.Event()
    _dropped.append(resource)
    try:
        # threading.Thread has locks of its own, which this thread may hold.
        _thread.start_new_thread(_release_all, (done,))
    except RuntimeError:  # no more threads; the next one to be collected takes this one along
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
