"""Measure the memory and the open files of a process."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

MB = 1 << 20


def resident_bytes(pid: int) -> int:
    """The resident memory of a process in bytes."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


def open_files(pid: int) -> int:
    """The number of open file descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class MemoryWatch(threading.Thread):
    """Samples the resident memory of a process until `stop`; `first` and `peak` are in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self._ended = threading.Event()
        self.first = self.peak = resident_bytes(pid)
        self.start()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, resident_bytes(self._pid))

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def __str__(self) -> str:
        return f"{self.first / MB:.0f} MB before, {self.peak / MB:.0f} MB at most"
