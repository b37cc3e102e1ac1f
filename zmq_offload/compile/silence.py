"""Keep what libraries print out of the user's terminal."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def add_verbose(parser: Any) -> None:
    parser.add_argument(
        "--verbose", action="store_true", help="also show what TVM, its compiler and ONNX Runtime print themselves"
    )


def silent(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A command during which libraries print nothing, unless it is called with --verbose."""

    def command(args: argparse.Namespace) -> int:
        if args.verbose:
            return run(args)
        with silenced():
            return run(args)

    return command


@contextmanager
def silenced() -> Iterator[None]:
    """Discard what C++ code writes to file descriptor 2, and Python's warnings; `sys.stderr` still reaches the user."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed: there is nothing to keep clean
        yield
        return
    before = sys.stderr
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    # A test, or whoever embeds this, may have put something else in its place, which needs no descriptor.
    own = open(kept, "w", buffering=1, errors="backslashreplace", closefd=False) if _number(before) == 2 else before  # noqa: SIM115
    sys.stderr = own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        own.flush()
        sys.stderr = before
        os.dup2(kept, 2)
        os.close(kept)


def _number(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None
