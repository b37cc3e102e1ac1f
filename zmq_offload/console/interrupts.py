"""What Ctrl-C does to a program. Imports next to nothing: `main` functions enter `quiet_ctrl_c` before all else."""

from __future__ import annotations

import contextlib
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


@contextlib.contextmanager
def quiet_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the process at once in the body, unless that sets a handler of its own.

    A KeyboardInterrupt would not do: libraries that are being imported catch it, or report it as a damaged package.
    """
    replaced = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with _handler(lambda *_: os._exit(128 + signal.SIGINT)) if replaced else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def raising_ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in the body, which cleans up.

    A job in the background ignores it, and still does.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    with contextlib.nullcontext() if ignored else _handler(signal.default_int_handler):
        yield


@contextlib.contextmanager
def _handler(handler: Callable[..., Any]) -> Iterator[None]:
    try:
        before = signal.signal(signal.SIGINT, handler)
    except ValueError:  # only the main thread may; the others never get a KeyboardInterrupt
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
