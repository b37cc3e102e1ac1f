"""Sends spans from a process of its own.

To make and encode the spans of a request takes more of the interpreter than to serve it. In a thread of the program,
even a hundredth of the requests would slow the others down. Here the program only writes down what it noted.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO, Generic, NamedTuple, TypeVar

from zmq_offload.telemetry.traces.spans import NewId, Span

log = logging.getLogger(__name__)

_EVERY = 0.5
"""Seconds between two times that records are handed over."""
_MOST = 8192
"""Records that wait for that."""
_AGAIN = 10.0
"""Seconds until a process that ended is started again."""
_END = 4.0
"""Seconds that the end of the program waits for the process to send the last spans."""
_HAND_OVER = 1.0
"""Seconds that it waits before, until they are handed over."""

Record = TypeVar("Record")


class Start(NamedTuple):
    """What the process needs first. `prepare` sets up its log. The functions are of modules, so that it finds them."""

    url: str
    service: str
    spans_of: Callable[..., Iterable[Span]]
    prepare: Callable[[], object]
    program: int
    """The process whose spans these are."""


class Sender(Generic[Record]):
    """Has an `Exporter` in another process, which makes spans of records by `spans_of` and sends them.

    Raises ModuleNotFoundError if its packages are not installed.
    """

    def __init__(
        self,
        url: str,
        service: str,
        spans_of: Callable[[Record, NewId], Iterable[Span]],
        prepare: Callable[[], object],
    ) -> None:
        if importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is None:
            raise ModuleNotFoundError("No module named 'opentelemetry.exporter.otlp.proto.http'")
        self._start = Start(url, service, spans_of, prepare, os.getpid())
        self._waiting: list[Record] = []
        self.dropped = 0
        """Records that were not handed over. The process counts, and tells, what it cannot deliver."""
        self._wake = threading.Event()
        self._closing = False
        self._process: subprocess.Popen[bytes] | None = None
        self._again_at = 0.0
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Take the record of a request, or drop it if too many wait. Never blocks. For one thread."""
        if len(self._waiting) < _MOST:
            self._waiting.append(record)
        else:
            self.dropped += 1

    def close(self) -> None:
        """Hand over what waits, give the process a few seconds to send it, and end it."""
        self._closing = True
        self._wake.set()
        self._thread.join(_HAND_OVER)
        process = self._process
        if process is not None:
            assert process.stdin is not None
            if process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_END)
            process.kill()
            process.wait()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(_EVERY)
            self._hand_over()
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()  # it sends what it has, and ends

    def _hand_over(self) -> None:
        waiting = self._waiting
        records = waiting[: len(waiting)]
        del waiting[: len(records)]  # others may have come
        pipe = self._pipe()
        if not records:
            return
        try:
            if pipe is None:
                raise BrokenPipeError
            pickle.dump(records, pipe, pickle.HIGHEST_PROTOCOL)
            pipe.flush()
        except OSError:
            self.dropped += len(records)

    def _pipe(self) -> IO[bytes] | None:
        """What leads to the process. None while there is none."""
        process, now = self._process, time.monotonic()
        if process is not None and process.poll() is None:
            return process.stdin
        if now < self._again_at:
            return None
        if process is not None:
            log.warning("the process that sends traces ended with code %s; it is started again", process.returncode)
            self._release(process)
        self._again_at = now + _AGAIN
        try:
            self._process = started(self._start)
        except OSError as error:
            log.warning("no process can be started to send traces: %s", error.strerror)
            return None
        return self._process.stdin

    @staticmethod
    def _release(process: subprocess.Popen[bytes]) -> None:
        with suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()


def started(start: Start) -> subprocess.Popen[bytes]:
    """The process, which knows what it is to do."""
    code = "from zmq_offload.telemetry.traces.sender import main; main()"
    # What the program prints is for those who started it; they may read until its end.
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        pickle.dump(start, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
    return process


def main() -> None:
    """Send the spans of the records on stdin, until its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are the program's, whose end ends this
        signal.signal(number, signal.SIG_IGN)
    given = sys.stdin.buffer
    start: Start = pickle.load(given)
    start.prepare()
    from zmq_offload.telemetry.traces.exporter import Exporter

    exporter: Exporter[object] = Exporter(start.url, start.service, start.spans_of, start.program)
    with suppress(EOFError, pickle.UnpicklingError):  # the program may have been killed amid a record
        while True:
            for record in pickle.load(given):
                exporter.put(record)
    exporter.close()
