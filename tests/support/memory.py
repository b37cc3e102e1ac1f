"""What a process holds: memory and open files, while a test runs."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

MB = 1 << 20


def resident(pid: int) -> int:
    """Bytes."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Memory(threading.Thread):
    """Watches a process's resident memory."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self._ended = threading.Event()
        self.first = self.peak = resident(pid)
        self.start()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, resident(self._pid))

    def end(self) -> None:
        self._ended.set()
        self.join()

    def __str__(self) -> str:
        return f"{self.first / MB:.0f} MB before, {self.peak / MB:.0f} MB at most"
