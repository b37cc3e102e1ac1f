"""The demo's child processes and the signals that end it: whatever happens, no process is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from zmq_offload.console.dotenv import FILE_VARIABLE
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import Internal

Stop: TypeAlias = Callable[["subprocess.Popen[bytes]"], None]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns the signals that end a program into one KeyboardInterrupt in the main thread; use as a context manager.

    Only the first signal interrupts, so that the clean-up which it sets off is not interrupted in turn. `number` is
    that signal.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._raised = False
        self._held = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in SIGNALS:
            # What is ignored stays ignored: a job in the background, or one under nohup.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes while the body runs interrupts after it."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._deliver()

    def _on_signal(self, number: int, _: object) -> None:
        if self.number is None:
            self.number = number
        self._deliver()

    def _deliver(self) -> None:
        if self.number is not None and not self._held and not self._raised:
            self._raised = True
            raise KeyboardInterrupt


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    stop: Stop


class Children:
    """Processes that are ended, the youngest first, when the context is left.

    Each is in a session of its own: Ctrl-C reaches this process only, which then ends them in order.
    """

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._running: list[_Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        stop: Stop,
        stdout: int | None = None,
        log: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start `python ARGUMENTS`; `stop` is how to end it. What it writes goes to `log`, if given.

        It gets none of this project's variables, neither of the environment nor of a file .env: they are meant for the
        user's own broker and workers.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environment[FILE_VARIABLE] = os.devnull
        with contextlib.ExitStack() as opened:
            errors = opened.enter_context(log.open("wb")) if log else None
            with self._interrupts.held():  # else a signal could come before the process is known to `stop`
                process = subprocess.Popen(
                    [sys.executable, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout if stdout is not None else errors,
                    stderr=errors,
                    env=environment,
                    start_new_session=True,
                )
                self._running.append(_Child(name, process, stop))
        return process

    def check(self) -> None:
        """Raises Internal if one of them has ended."""
        for child in self._running:
            code = child.process.poll()
            if code is not None:
                raise Internal(f"the {child.name} ended with code {code}")

    def stop(self) -> None:
        """End all of them and wait for it. Idempotent."""
        with self._interrupts.held():
            while self._running:
                child = self._running[-1]
                child.stop(child.process)
                if child.process.stdout is not None:
                    child.process.stdout.close()
                self._running.pop()


def terminate(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """SIGTERM, and SIGKILL if that does not end it within `patience` seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and what it has started in its session, such as a linker."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
