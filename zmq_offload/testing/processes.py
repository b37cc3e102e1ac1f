"""Child processes that never outlive their program, and the signals that end the program."""

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
from types import FrameType
from typing import TypeAlias

from zmq_offload.console.dotenv import FILE_VARIABLE
from zmq_offload.console.variables import PREFIX
from zmq_offload.errors import Internal

Stop: TypeAlias = Callable[["subprocess.Popen[bytes]"], None]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """A context in which the signals that end a program raise one KeyboardInterrupt in the main thread.

    Only the first signal interrupts, so that the cleanup is not interrupted. `number` is that signal.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._raised = False
        self._held = 0
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Interrupts:
        for number in SIGNALS:
            # An ignored signal stays ignored, as in a background job or under nohup.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delay the interrupt of a signal that arrives during the body until its end."""
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
    """A context that ends its processes when it is left, the youngest first.

    Each process has a session of its own, so Ctrl-C reaches only this process, which then ends them in order. With
    `interrupts`, no signal interrupts starting and ending a process.
    """

    def __init__(self, interrupts: Interrupts | None = None) -> None:
        self._held = contextlib.nullcontext if interrupts is None else interrupts.held
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
        """Start `python ARGUMENTS`, to be ended by `stop`. Its output goes to `log`, if given.

        The process gets no variables of this project, from the environment or a file .env: they are meant for the
        user's own broker and workers.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environment[FILE_VARIABLE] = os.devnull
        with contextlib.ExitStack() as opened:
            errors = opened.enter_context(log.open("wb")) if log else None
            with self._held():  # else a signal could arrive before `stop` knows the process
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
        """Raise Internal if a process has ended."""
        for child in self._running:
            code = child.process.poll()
            if code is not None:
                raise Internal(f"the {child.name} ended with code {code}")

    def stop(self) -> None:
        """End all processes and wait for them. A second call does nothing."""
        with self._held():
            while self._running:
                child = self._running[-1]
                child.stop(child.process)
                if child.process.stdout is not None:
                    child.process.stdout.close()
                self._running.pop()


def terminate(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a process by SIGTERM, or by SIGKILL if it does not end within `patience` seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and the processes of its session, such as a linker."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
