"""Which processes a program has left behind: they have the environment of the test that started it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

MARK = "ZMQ_TEST_MARK"


def new_mark() -> str:
    return uuid.uuid4().hex


def processes(mark: str) -> dict[int, str]:
    """The command lines of all processes that were started with `MARK=mark`, by process id."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # gone, or another user's
    return found
