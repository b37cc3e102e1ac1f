"""Handle Ctrl-C and other signals that end a program, also while TVM runs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeAlias, TypeVar

from zmq_offload.common.scratch import remove_live, scratch_folder
from zmq_offload.console.terminal import CLEAR

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE_S = 1.0
"""Seconds that the main thread has to end after a signal. TVM's compiler ignores signals for seconds."""

Options = TypeVar("Options")
Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None

_first_sigint_is_handled = False


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for one that passed through TVM.

    TVM turns a KeyboardInterrupt in a Python function that it calls into a RuntimeError without a text, which would be
    reported as an error of the model.
    """
    try:
        yield
    except RuntimeError as error:
        if type(error) is RuntimeError and not str(error):
            raise KeyboardInterrupt from error
        raise


@contextmanager
def handling_first_interrupt() -> Iterator[None]:
    """Leave the first Ctrl-C to the body, which has its own handler."""
    global _first_sigint_is_handled
    _first_sigint_is_handled = True
    try:
        yield
    finally:
        _first_sigint_is_handled = False


def stoppable(run: Callable[[Options], int]) -> Callable[[Options], int]:
    """Have Ctrl-C, SIGTERM and SIGHUP end a command within two seconds.

    The command prints one line to stderr, exits with 128 + the signal's number, and leaves no temporary folder and no
    child process.
    """

    def command(args: Options) -> int:
        with _Watch() as watch:
            try:
                with _own_temporary_folder():
                    return run(args)
            except BaseException as error:
                # Ctrl-C also reaches a linker, which fails, and may break an import. Such errors are not reported.
                if watch.number is None and not isinstance(error, KeyboardInterrupt):
                    raise
                watch.kill_children()
        say_interrupted()
        return 128 + (watch.number or signal.SIGINT)

    return command


@contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Have TVM and its linker use a temporary folder that is always removed."""
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with scratch_folder(Path(tempfile.gettempdir()), ".zmq-offload-") as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before
            if variable is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = variable


class _Watch:
    """Turn the signals that end a program into one KeyboardInterrupt in the main thread.

    If the body does not end within GRACE_S, because it is inside a library, another thread ends the process.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Handler] = {}
        self._raised = False
        self._ended = threading.Event()
        self._before = _children()

    def __enter__(self) -> _Watch:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write, False)
        for number in SIGNALS:
            # A signal that is ignored stays ignored, for background jobs and nohup.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        # Python writes to this pipe at once, even while the main thread is inside a library and runs no handler.
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="interrupt", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._ended.set()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def kill_children(self) -> None:
        """Kill the processes that the body started, such as a linker."""
        for child in _children() - self._before:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)

    def _on_signal(self, number: int, _: object) -> None:
        self.number = self.number or number
        if not self._raised:  # once only, so that the cleanup is not interrupted
            self._raised = True
            raise KeyboardInterrupt

    def _watch(self) -> None:
        global _first_sigint_is_handled
        while numbers := os.read(self._read, 16):
            for number in numbers:
                if number == signal.SIGINT and _first_sigint_is_handled:
                    _first_sigint_is_handled = False
                elif number in self._previous:
                    self.number = self.number or number  # the body may have its own handler
                    if not self._ended.wait(GRACE_S):
                        self._end(self.number)

    def _end(self, number: int) -> None:
        self.kill_children()
        remove_live()
        say_interrupted()
        os._exit(128 + number)


def say_interrupted() -> None:
    """Print the line of a command that a signal ended."""
    with contextlib.suppress(OSError, ValueError):
        start = CLEAR if sys.stderr.isatty() else ""  # a progress line may be shown
        print(f"{start}zmq-offload: interrupted", file=sys.stderr, flush=True)


def _children() -> set[int]:
    with contextlib.suppress(OSError):
        tasks = Path("/proc/self/task").iterdir()
        return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
    return set()
