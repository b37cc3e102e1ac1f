"""The shared memory of processes, seen from outside."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from zmq_offload.net.sharedmemory import layout, segment


def used_cells(pids: Iterable[int]) -> dict[int, int]:
    """The cells that others know of, by arena (its inode), in all arenas that the processes have or read."""
    found: dict[int, int] = {}
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if f"/memfd:{segment.NAME} " in os.readlink(link):
                    fd = os.open(link, os.O_RDONLY)
                    try:
                        found[os.fstat(fd).st_ino] = _used(fd)
                    finally:
                        os.close(fd)
    return found


def _used(fd: int) -> int:
    with mmap.mmap(fd, layout.DATA_AT, prot=mmap.PROT_READ) as heads, memoryview(heads) as view:
        return sum(layout.read_cell(view, number).nbytes > 0 for number in range(layout.COUNT))


def mapped_arenas(pid: int) -> set[int]:
    """The arenas (their inodes) that a process has open or mapped, its own included. None if it has ended."""
    name = f"/memfd:{segment.NAME} "
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if name in os.readlink(link):
                    found.add(link.stat().st_ino)
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        found |= {int(line.split()[4]) for line in maps if name in line}
    return found
