"""Commands at a terminal of their own."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import termios
from typing import Any

from tests.console.test_progress import plain
from tests.support.processes import ROOT, eventually


class AtTerminal:
    """`zmq-offload ARGUMENTS` at a terminal of its own, for as long as the body of `with` lasts."""

    def __init__(self, *arguments: str, rows: int = 24, columns: int = 80) -> None:
        self._master, self._slave = pty.openpty()
        os.set_blocking(self._master, False)
        subprocess.run(["stty", "rows", str(rows), "cols", str(columns)], stdin=self._slave, check=True)
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        ends: Any = {"stdin": self._slave, "stdout": self._slave, "stderr": self._slave}
        command = [sys.executable, "-m", "zmq_offload", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **ends)
        self._shown = ""

    def read(self) -> str:
        """What was shown since the last `wait_for` began, with its control characters."""
        with contextlib.suppress(OSError):
            while more := os.read(self._master, 65536):
                self._shown += more.decode(errors="replace")
        return self._shown

    def wait_for(self, pattern: str, *, colored: bool = False) -> str:
        """Wait until it shows a pattern that it has not shown before; `colored`, with control characters."""
        self._shown = ""
        eventually(lambda: re.search(pattern, self.read() if colored else plain(self.read())))
        return self._shown

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed, as usual."""
        return bool(termios.tcgetattr(self._slave)[3] & termios.ECHO)

    def __enter__(self) -> AtTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)
