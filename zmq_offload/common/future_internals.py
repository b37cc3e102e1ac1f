"""All uses of private attributes of `concurrent.futures.Future`.

`tests/common/test_future_internals.py` fails with an explanation when a new Python renames one of them.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

LOCK, WAITERS, CALLBACKS = "_condition", "_waiters", "_done_callbacks"


def fail_in_child(future: Future[Any], error: BaseException) -> None:
    """End a future of the parent process in a forked child, without calling anything back.

    A thread that does not exist in the child may have held the future's lock, and its waiters and callbacks belong to
    the parent. So all three are replaced before the error is set.
    """
    setattr(future, LOCK, threading.Condition())
    setattr(future, WAITERS, [])
    setattr(future, CALLBACKS, [])
    if not future.done():
        future.set_exception(error)
