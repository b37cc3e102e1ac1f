"""Returning freed memory to the system."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Return freed memory to the system.

    glibc keeps it for later allocations: after a model of hundreds of megabytes is dropped, most of its memory still
    belongs to the process. Other C libraries have no such function and need none.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))
