"""Run a function in a forked child, with a time limit."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable

PATIENCE = 20.0
"""Seconds after which a child counts as hanging."""


def run_in_fork(work: Callable[[], object]) -> str:
    """Call `work` in a child that `fork` makes; return its result as text, or the name and text of its exception."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def main() -> None:
        # pyzmq, if the parent lent memory to it, drops the parent's context and sockets when it is used in the child.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        there.send(said)

    child = context.Process(target=main)
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork with threads, which is what these tests do.
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
