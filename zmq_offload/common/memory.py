"""What a process has of the memory; and freed memory: keeping it for the next allocation, and returning it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def resident() -> int:
    """The bytes of this process that are in memory; 0 if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def trim() -> None:
    """Return freed memory to the system.

    glibc keeps it for later allocations: after a model of hundreds of megabytes is dropped, most of its memory still
    belongs to the process. Other C libraries have no such function and need none.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD = 32 * 1024 * 1024
"""What glibc has at most: larger blocks are always mapped by themselves, and returned at once."""


def keep(most: int) -> None:
    """Keep up to `most` bytes of freed memory.

    Without this, glibc returns more than a few megabytes at once. A program that takes in and frees one message of a
    megabyte after the other then has a page fault for each 4 KB, again and again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, most)
