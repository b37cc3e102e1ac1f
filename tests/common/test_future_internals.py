"""Futures are as `zmq_offload.common.future_internals` expects them. After an update of Python, look there first."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from zmq_offload.common import future_internals

ADVICE = "concurrent.futures has changed: adapt zmq_offload/common/future_internals.py"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (future_internals.LOCK, threading.Condition),
        (future_internals.WAITERS, list),
        (future_internals.CALLBACKS, list),
    ],
)
def test_a_future_has_the_attributes(name: str, kind: type) -> None:
    assert isinstance(getattr(Future[int](), name, None), kind), f"Future.{name} is not a {kind.__name__}; {ADVICE}"


def test_a_future_whose_lock_is_held_fails_without_calling_back() -> None:
    future, called = Future[int](), list[object]()
    future.add_done_callback(called.append)
    getattr(future, future_internals.LOCK).acquire()
    ending = threading.Thread(target=future_internals.fail_in_child, args=(future, RuntimeError("forked")), daemon=True)
    ending.start()
    ending.join(10)
    assert not ending.is_alive(), f"the lock is waited for; {ADVICE}"
    assert isinstance(future.exception(timeout=0), RuntimeError)
    assert called == [], ADVICE


def test_a_future_that_is_done_keeps_its_value() -> None:
    future = Future[int]()
    future.set_result(1)
    future_internals.fail_in_child(future, RuntimeError("forked"))
    assert future.result() == 1
