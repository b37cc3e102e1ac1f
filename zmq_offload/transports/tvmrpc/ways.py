"""What both ways to run a model on a server have in common: by our function, and by a library that is uploaded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from zmq_offload.protocol.payload import Array
from zmq_offload.transports.transport import Attempt, Reply, Request, Served

_STEP = 0.05
"""Seconds between looks at whether a call is canceled that waits for another thread."""


class Way(Protocol):
    """How requests are made in one session."""

    def infer(self, request: Request, attempt: Attempt) -> Reply: ...

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]: ...


@contextmanager
def holding(lock: threading.Lock, seconds: Callable[[], float]) -> Iterator[None]:
    """Hold a lock in the body. `seconds` says how long the wait for it may be, and raises when it is over."""
    while not lock.acquire(timeout=min(_STEP, seconds())):
        pass
    try:
        yield
    finally:
        lock.release()


def owned(view: Array, given: Mapping[str, Array] | None, name: str) -> Array:
    """An output in memory of its own: the caller's array, if it fits."""
    place = None if given is None else given.get(name)
    if place is None or place.shape != view.shape or place.dtype != view.dtype:
        return np.array(view)
    np.copyto(place, view)
    return place
