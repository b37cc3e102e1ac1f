"""Ctrl-C while TVM runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a KeyboardInterrupt through TVM.

    One that is raised in a Python function which TVM called comes out as a RuntimeError without a text, which would be
    reported as a fault of the model.
    """
    try:
        yield
    except RuntimeError as error:
        if type(error) is RuntimeError and not str(error):
            raise KeyboardInterrupt from error
        raise
