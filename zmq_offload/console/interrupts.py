"""Handlers for Ctrl-C.

This module imports next to nothing, because the programs enter `quiet_ctrl_c` before they import anything else.
"""

from __future__ import annotations

import contextlib
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


@contextlib.contextmanager
def quiet_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once while the body runs, unless the body sets a handler of its own.

    A KeyboardInterrupt does not work during imports: libraries catch it, or report a damaged package.
    """
    replaced = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with _handler(lambda *_: os._exit(128 + signal.SIGINT)) if replaced else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def raising_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the body, so that the body can clean up.

    A job in the background ignores Ctrl-C, and this keeps it so.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    with contextlib.nullcontext() if ignored else _handler(signal.default_int_handler):
        yield


@contextlib.contextmanager
def _handler(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    try:
        before = signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread, which alone sets handlers and gets KeyboardInterrupt
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
