"""Ctrl-C and other ends, while TVM runs."""

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
from typing import Any, TypeVar

from zmq_offload.common.scratch import remove_live, scratch_folder
from zmq_offload.console.terminal import CLEAR

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE_S = 1.0
"""How long the main thread may take to end after a signal. TVM's compiler runs for seconds without a look at one."""

Options = TypeVar("Options")

_patient = 0


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


@contextmanager
def patiently() -> Iterator[None]:
    """While the body runs, the first Ctrl-C is the body's own affair: it has a handler that ends it in good order."""
    global _patient
    _patient = 1
    try:
        yield
    finally:
        _patient = 0


def stoppable(run: Callable[[Options], int]) -> Callable[[Options], int]:
    """A command that Ctrl-C, SIGTERM and SIGHUP end within a second or two: with one line on stderr, the exit code
    128 + the signal's number, and no temporary folder or child process left."""

    def command(args: Options) -> int:
        with _Watch() as watch:
            try:
                with _own_temporary_folder():
                    return run(args)
            except BaseException as error:
                # A linker gets the terminal's Ctrl-C, too, and fails; so may an import. That is not what happened.
                if watch.number is None and not isinstance(error, KeyboardInterrupt):
                    raise
                watch.kill_children()
        say_interrupted()
        return 128 + (watch.number or signal.SIGINT)

    return command


@contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Have TVM, and the compiler that it starts, put their temporary files into a folder that is always removed."""
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
    """Turns the signals that end a program into one KeyboardInterrupt in the main thread. If that does not end the body
    within GRACE_S, because it is inside a library, ends the process from another thread."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}
        self._raised = False
        self._ended = threading.Event()
        self._before = _children()

    def __enter__(self) -> _Watch:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write, False)
        for number in SIGNALS:
            # What is ignored stays ignored: a job in the background, or one under nohup.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        # Written to at once, also while the main thread is inside a library and runs no handler.
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
        """End the processes that the body has started: a linker, or what measures candidates."""
        for child in _children() - self._before:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)

    def _on_signal(self, number: int, _: object) -> None:
        self.number = self.number or number
        if not self._raised:  # only once, so that the clean-up that it sets off is not interrupted in turn
            self._raised = True
            raise KeyboardInterrupt

    def _watch(self) -> None:
        global _patient
        while numbers := os.read(self._read, 16):
            for number in numbers:
                if number == signal.SIGINT and _patient:
                    _patient = 0
                elif number in self._previous:
                    self.number = self.number or number  # also where the body has a handler of its own
                    if not self._ended.wait(GRACE_S):
                        self._end(self.number)

    def _end(self, number: int) -> None:
        self.kill_children()
        remove_live()
        say_interrupted()
        os._exit(128 + number)


def say_interrupted() -> None:
    """The one line with which a command that a signal ended says so."""
    with contextlib.suppress(OSError, ValueError):
        start = CLEAR if sys.stderr.isatty() else ""  # a step may be shown there
        print(f"{start}zmq-offload: interrupted", file=sys.stderr, flush=True)


def _children() -> set[int]:
    with contextlib.suppress(OSError):
        tasks = Path("/proc/self/task").iterdir()
        return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
    return set()
