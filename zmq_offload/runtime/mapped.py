"""The weights in a library. TVM copies them when it loads the library, and the file's pages stay in memory, too."""

from __future__ import annotations

import ctypes
import mmap
import os

_WEIGHTS = b"__tvm_ffi__library_bin"
"""The symbol of the bytes that TVM's loader reads: their number in 8 bytes, then its bytecode with the weights."""

_libc = ctypes.CDLL(None)
for _name, _result, _arguments in (
    ("dlopen", ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]),
    ("dlsym", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    ("dlclose", ctypes.c_int, [ctypes.c_void_p]),
    ("madvise", ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]),
):
    if (_function := getattr(_libc, _name, None)) is not None:
        _function.restype, _function.argtypes = _result, _arguments

_FUNCTIONS = all(hasattr(_libc, name) for name in ("dlopen", "dlsym", "dlclose", "madvise"))


def forget_weights(path: str) -> int:
    """Drop the pages with the weights of the library that is loaded from `path` out of this process's memory. A page
    that is looked at again is read from the file.

    Returns how many bytes were dropped: 0 where the library has no weights, or the system cannot.
    """
    if not (_FUNCTIONS and hasattr(os, "RTLD_NOLOAD") and hasattr(mmap, "MADV_DONTNEED")):
        return 0
    library = _libc.dlopen(os.fsencode(path), os.RTLD_LAZY | os.RTLD_NOLOAD)
    if not library:
        return 0
    try:
        start = _libc.dlsym(library, _WEIGHTS)
        if not start:
            return 0
        end = (start + ctypes.c_uint64.from_address(start).value) // mmap.PAGESIZE * mmap.PAGESIZE
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if end <= first:
            return 0
        # The symbol is in a section that nothing writes to, so that the file has what the memory has.
        return 0 if _libc.madvise(first, end - first, mmap.MADV_DONTNEED) else end - first
    finally:
        _libc.dlclose(library)
