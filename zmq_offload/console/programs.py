"""The beginning and end of all programs: streams and exit codes. Also how one program starts another."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TextIO

from zmq_offload.console.interrupts import quiet_ctrl_c
from zmq_offload.errors import OffloadError, one_line, printable

ROOT = Path(__file__).resolve().parent.parent.parent
"""The folder with the three packages of this project."""


def run(main: Callable[[], int | None], program: str) -> int:
    """Run a program and return its exit code. An error that a user can cause is one line on stderr and exit code 1.

    Wrong usage exits with 2 (argparse's SystemExit passes through), Ctrl-C with 130, and a closed pipe (`| head`) with
    141. A program with a closed standard output works silently.
    """
    open_streams()
    try:
        with quiet_ctrl_c():
            try:
                return main() or 0
            finally:
                sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if not _is_expected(error):
            raise
        text = error.message if isinstance(error, OffloadError) else one_line(error)
        _complain(f"{program}: error: {shortened(text) or type(error).__name__}")
        _discard(sys.stdout)
        return 1


def open_streams() -> None:
    """Make the three standard streams usable, however this process was started.

    A closed stream (`>&-`) becomes /dev/null. Otherwise the next file or socket would get its number, and with it the
    output of libraries. Characters that the terminal cannot show are escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            try:
                os.fstat(number)
            except OSError:
                null = os.open(os.devnull, os.O_RDWR)
                if null != number:
                    os.dup2(null, number)
                    os.close(null)
            stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        if number == 1 and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def command() -> list[str]:
    """The command that runs this installation's `zmq-offload`. The caller appends the arguments.

    `python -m zmq_offload` would prefer a file zmq_offload.py in the current folder.
    """
    return [sys.executable, str(ROOT / "zmq_offload" / "__main__.py")]


def shortened(text: str, most: int = 600) -> str:
    """A message as one line. A long one, which quotes its input, keeps its beginning and its end."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most * 2 // 3]} ... {line[-most // 3 :]}"


def module(name: str) -> list[str]:
    """The command that runs a module of this installation; see `command`."""
    return [*command(), "--module", name]


def own(name: str) -> ModuleType:
    """Import a module of this installation, even if the current folder has one of the same name."""
    top = name.partition(".")[0]
    if top not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec(top, [str(ROOT)])
        if spec is not None and spec.loader is not None:
            module = sys.modules[top] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    return importlib.import_module(name)


def _is_expected(error: Exception) -> bool:
    """Whether a user can cause this error; any other is a bug in this code."""
    if isinstance(error, (OffloadError, OSError, MemoryError)):
        return True
    import zmq  # imported late: most errors, such as wrong options, do not need it

    return isinstance(error, zmq.ZMQError)


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _discard(stream: TextIO) -> None:
    """Drop the output that a stream could not write. At exit the interpreter would try again, and complain."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()
