"""Keeps the processes of a supervisor running. `common.seats` decides; this starts processes, listens and signals.

A process has a lifeline: a pipe whose other end is the supervisor's. It reads the end of file there when its supervisor
is gone, however that ended.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from zmq_offload.common.seats import Seats

_LONGEST = 4096
"""Bytes that are kept of a line that a process says."""

_LONGEST_WAIT = 3600.0
"""Seconds. `poll` cannot wait for ever longer times."""


@dataclass(slots=True)
class _Child:
    """A process that runs."""

    process: subprocess.Popen[bytes]
    lifeline: int
    """The supervisor's end. What is written to it, the process can read."""
    said: bytes = b""


def _signal_name(code: int) -> str:
    """The signal that a process died of, for the log; "" if it ended by itself."""
    with contextlib.suppress(ValueError):
        return f" ({signal.Signals(-code).name})"
    return ""


class Supervision:
    """Starts a process in each seat, starts another when one ends, and ends all.

    `kind` is what the log calls a process. A subclass says how one is started.
    """

    def __init__(self, kind: str, seats: Seats, log: logging.Logger) -> None:
        self._kind = kind
        self._seats = seats
        self._log = log
        self._children: dict[int, _Child] = {}
        self._stop = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def _launch(self, at: int, starts: int, lifeline: int) -> subprocess.Popen[bytes]:
        """Start a process in a seat that had so many before, and pass it the descriptor `lifeline`.

        In a session of its own it does not get the terminal's Ctrl-C, which the supervisor passes on. Raises OSError
        if the system has no means for another process.
        """
        raise NotImplementedError

    def _heard(self, at: int, line: str) -> None:
        """A process whose stdout is a pipe wrote a line."""

    def _ended(self, at: int) -> None:
        """A process has ended. What it wrote last can be waited for."""

    def _turn(self, now: float) -> float:
        """Called in each turn, unless all are stopped. Returns when to call it again even if nothing happens."""
        return math.inf

    def run(self) -> int:
        """Run until SIGTERM, SIGINT or SIGHUP. Returns 0 if then every process stops without an error."""
        with self._signals():
            while True:
                # After a signal, a process that had ended before counts as one that was told to.
                if self._stop:
                    self._seats.stop(time.monotonic())
                self._reap()
                self._start()
                due = math.inf if self._seats.stopping else self._turn(time.monotonic())
                self._end()
                if self._seats.finished:
                    return int(self._seats.failed)
                self._wait(min(due, self._seats.next_deadline()))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals wake the loop. The handlers stay: a second Ctrl-C must not interrupt the end."""
        previous = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                # nohup ignores SIGHUP, and a shell SIGINT for jobs in the background.
                if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._told)
            signal.signal(signal.SIGCHLD, lambda *_: None)
            yield
        finally:
            signal.set_wakeup_fd(previous)

    def _told(self, *_: object) -> None:
        self._stop = True  # the loop acts on it: a handler may run while a process is being started

    def _start(self) -> None:
        for at in self._seats.due(time.monotonic()):
            if self._stop:
                return
            read = write = -1
            try:
                read, write = os.pipe()
                process = self._launch(at, self._seats.starts(at), read)
            except OSError as error:
                if write >= 0:
                    os.close(write)
                wait = self._seats.not_started(at, time.monotonic())
                self._log.error("cannot start %s %d: %s; trying again in %.1f s", self._kind, at, error, wait)
                continue
            finally:
                if read >= 0:
                    os.close(read)
            if process.stdout is not None:
                # A process that it started may hold the pipe open after its end.
                os.set_blocking(process.stdout.fileno(), False)
            self._children[at] = _Child(process, write)
            self._seats.started(at, time.monotonic())
            self._log.info("%s %d is process %d", self._kind, at, process.pid)

    def _write(self, at: int, data: bytes) -> None:
        """Write to the lifeline of a process. One that has ended does not read it."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._children[at].lifeline, data)

    def _reap(self) -> None:
        for at, child in list(self._children.items()):
            if (code := child.process.poll()) is None:
                continue
            self._hear(at, child)
            self._ended(at)
            del self._children[at]
            os.close(child.lifeline)
            if child.process.stdout is not None:
                child.process.stdout.close()
            stopping = self._seats.stopping
            wait = self._seats.ended(at, code, time.monotonic())
            how = f"ended with code {code}{_signal_name(code)}"
            if wait is not None:
                self._log.error("%s %d %s; starting another in %.1f s", self._kind, at, how, wait)
            elif not stopping:
                self._log.error("%s %d %s before it was ready; stopping", self._kind, at, how)

    def _end(self) -> None:
        for at in self._seats.to_tell():
            self._children[at].process.terminate()
        for at in self._seats.to_kill(time.monotonic()):
            self._log.error("%s %d did not end in time; killing it", self._kind, at)
            self._children[at].process.kill()

    def _wait(self, due: float) -> None:
        """Wait until a signal arrives, a process says something, or something is due."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        talking = {}
        for at, child in self._children.items():
            if child.process.stdout is not None and not child.process.stdout.closed:
                talking[child.process.stdout.fileno()] = at
                poll.register(child.process.stdout, select.POLLIN)
        wait = min(_LONGEST_WAIT, max(0.0, due - time.monotonic())) * 1000
        for descriptor, _ in poll.poll(wait):
            if descriptor == self._wake_read:
                os.read(self._wake_read, 4096)
            else:
                self._hear(talking[descriptor], self._children[talking[descriptor]])

    def _hear(self, at: int, child: _Child) -> None:
        """Read what a process wrote on its stdout, if that is a pipe."""
        out = child.process.stdout
        if out is None or out.closed:
            return
        try:
            more = os.read(out.fileno(), _LONGEST)
        except BlockingIOError:
            return
        if not more:
            out.close()  # it ends, or has closed its output
            return
        *lines, child.said = (child.said + more).split(b"\n")
        child.said = child.said[-_LONGEST:]
        for line in lines:
            self._heard(at, line.decode(errors="replace"))
