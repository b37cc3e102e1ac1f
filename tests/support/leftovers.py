"""Find processes that a program left running: they inherit an environment variable from the test."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

MARK_VARIABLE = "ZMQ_TEST_MARK"


def new_mark() -> str:
    """A value for `MARK_VARIABLE` that no other test uses."""
    return uuid.uuid4().hex


def processes_marked(mark: str) -> dict[int, str]:
    """The command lines, by process id, of all processes whose environment has the mark."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if f"{MARK_VARIABLE}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # gone, or another user's
    return found
