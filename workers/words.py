"""What a worker process writes to stderr, as events of the log.

A worker writes its log to its supervisor's stderr (`LOG_FD`). Its own descriptor 2 is a pipe to the supervisor. So all
that comes through the pipe is of others: TVM, a compiler, the interpreter. The supervisor outlives the worker,
and so has its last words, too. The worker never waits for more than the supervisor's own stderr, as it did without.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import threading
from typing import NamedTuple

from zmq_offload.console.logs import fields

log = logging.getLogger("workers.stderr")

_LONGEST = 4000
"""Bytes of a line; a longer one is several events."""

_PATIENCE = 1.0
"""Seconds to wait for the last words. A process that the worker started may keep the pipe open."""

_TVM = re.compile(r"\[\d\d:\d\d:\d\d\] (\S+?:\d+): (?:(Info|Debug|Warning|Error|Fatal): )?(.*)", re.S)

_LEVELS = {
    "Debug": logging.DEBUG,
    "Info": logging.INFO,
    "Warning": logging.WARNING,
    "Error": logging.ERROR,
    "Fatal": logging.CRITICAL,
}


class Word(NamedTuple):
    """A line of another's output, as an event."""

    level: int
    text: str
    source: str


def word_of(line: str) -> Word:
    """The event of a line. Lines of TVM's own form have a level and the place in its source; others are warnings."""
    match = _TVM.fullmatch(line)
    if match is None:
        return Word(logging.WARNING, line, "stderr")
    where, level, text = match.groups()
    return Word(_LEVELS[level or "Info"], f"{where}: {text}", "tvm")


class Lines:
    """Cuts what comes through a pipe into lines. Pure."""

    def __init__(self, longest: int = _LONGEST) -> None:
        self._longest = longest
        self._rest = b""

    def add(self, data: bytes) -> list[str]:
        """The lines that are whole now. The end of the pipe is empty data: then the rest is a line, too."""
        *whole, rest = (self._rest + data).split(b"\n")
        if not data:
            whole, rest = [*whole, rest], b""
        while len(rest) >= self._longest:
            whole, rest = [*whole, rest[: self._longest]], rest[self._longest :]
        self._rest = rest
        parts = [line[at : at + self._longest] for line in whole for at in range(0, len(line), self._longest)]
        return [part.decode(errors="backslashreplace").rstrip("\r") for part in parts if part.strip()]


class LastWords:
    """Reads the stderr of a worker process in a thread, until its end."""

    def __init__(self, process: subprocess.Popen[bytes], seat: int, name: str) -> None:
        assert process.stderr is not None
        self._pipe, self._pid, self._seat, self._name = process.stderr, process.pid, seat, name
        self._thread = threading.Thread(target=self._read, name=f"stderr of worker {seat}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait, after the end of the process, until its last words are in the log."""
        self._thread.join(_PATIENCE)

    def _read(self) -> None:
        lines = Lines()
        with self._pipe:
            while True:
                data = os.read(self._pipe.fileno(), 65536)
                for line in lines.add(data):
                    self._log(word_of(line))
                if not data:
                    return

    def _log(self, word: Word) -> None:
        extra = fields(worker=self._name, worker_pid=self._pid, source=word.source)
        log.log(word.level, "worker %d: %s", self._seat, word.text, extra=extra)
