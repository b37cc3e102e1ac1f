"""What a forked child gets from a function, with an end to waiting."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable

PATIENCE = 20.0
"""Seconds until a child counts as one that hangs."""


def in_child(work: Callable[[], object]) -> str:
    """The text of what `work` returns, or the name and text of what it raises, in a child that `fork` makes."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def main() -> None:
        # pyzmq, where the parent lent memory to it, drops a context and sockets of the parent's when it begins anew.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        there.send(said)

    child = context.Process(target=main)
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork among threads, which is what is tried here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    there.close()
    try:
        if not here.poll(PATIENCE):
            return "hangs"
        said: str = here.recv()
        child.join(PATIENCE)
        return said if child.exitcode == 0 else f"{said}, and ends with {child.exitcode}"
    except EOFError:
        child.join(PATIENCE)
        return f"ends with {child.exitcode}"
    finally:
        here.close()
        child.kill()
        child.join()
        child.close()
