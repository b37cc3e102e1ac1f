"""Keep the output of libraries away from the user's terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


def add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="show the output of TVM, its compiler and ONNX Runtime")


def silent(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Wrap a command so that libraries print nothing, unless it is called with --verbose."""

    def command(args: argparse.Namespace) -> int:
        if args.verbose:
            return run(args)
        with silenced():
            return run(args)

    return command


@contextmanager
def silenced() -> Iterator[None]:
    """Hold back Python's warnings, and what C++ code writes to file descriptor 2. `sys.stderr` still works.

    If a library ends the process, as LLVM does when the disk is full, its last output is shown. A system that starts no
    other process, such as one that emulates this one, shows all output.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    before = sys.stderr
    try:
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER], stdin=subprocess.PIPE, stderr=kept, start_new_session=True
        )
    except OSError:
        os.close(kept)
        yield
        return
    assert keeper.stdin is not None
    os.dup2(keeper.stdin.fileno(), 2)
    # A test or an embedding program may have replaced sys.stderr; that one needs no descriptor.
    own = open(kept, "w", buffering=1, errors="backslashreplace", closefd=False) if _number(before) == 2 else before  # noqa: SIM115
    sys.stderr = own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        own.flush()
        sys.stderr = before
        with contextlib.suppress(OSError):  # an interrupted command may have killed it
            keeper.stdin.write(_DONE)
            keeper.stdin.flush()
        os.dup2(kept, 2)
        os.close(kept)
        with contextlib.suppress(OSError):
            keeper.stdin.close()
        keeper.wait()


_DONE = b"\0done\0"

_KEEPER = f"""
import os
held = b""
while chunk := os.read(0, 65536):
    held = (held + chunk)[-20000:]
    if held.endswith({_DONE!r}):
        break
else:
    os.write(2, held)
"""
"""A process that keeps its input, and prints it if the input ends without `_DONE`."""


def _number(stream: TextIO) -> int | None:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None
