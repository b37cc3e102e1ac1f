"""glibc's list of a thread's destructors: take those of one library out of it.

glibc keeps the destructors of thread-local objects in a linked list for each thread. The list begins in a thread-local
variable near `errno` that has no symbol. It is found by adding a destructor and looking for the word that changed to
point to it. If no word did, the list is left as it is. Memory is read through /proc/self/mem, where a word that is not
an address raises an error and does not end the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

_WORD = ctypes.sizeof(ctypes.c_void_p)
_REACH = 32
"""Words on each side of `errno` to look at; all of glibc's thread-local variables take 18."""

# The words of an entry, after the function: its argument, the library that it belongs to, the next entry.
_ARGUMENT, _OWNER, _NEXT = (i * _WORD for i in (1, 2, 3))
_PATH_BYTES = 4096  # at most, of a library's name
_NAME = _WORD  # of the library, in its `struct link_map` of <link.h>

_libc = ctypes.CDLL(None)
for _name, _result, _arguments in (
    ("__errno_location", ctypes.c_void_p, []),
    ("malloc", ctypes.c_void_p, [ctypes.c_size_t]),
    ("__cxa_thread_atexit_impl", ctypes.c_int, [ctypes.c_void_p] * 3),
):
    if (_function := getattr(_libc, _name, None)) is not None:
        _function.restype, _function.argtypes = _result, _arguments


def drop_destructors(library: bytes) -> int | None:
    """Drop the calling thread's destructors that belong to a library whose path contains `library`.

    Returns how many were dropped, and None where the list is not found, as with another C library than glibc.
    """
    if not (hasattr(_libc, "__errno_location") and hasattr(_libc, "__cxa_thread_atexit_impl")):
        return None
    with contextlib.suppress(OSError, OverflowError), open("/proc/self/mem", "rb", buffering=0) as file:
        memory = _Memory(file.fileno())
        at, dropped = _first(memory), 0
        if at is None:
            return None
        while entry := memory.word(at):
            if library in memory.text(memory.word(memory.word(entry + _OWNER) + _NAME)):
                ctypes.c_void_p.from_address(at).value = memory.word(entry + _NEXT)
                dropped += 1
            else:
                at = entry + _NEXT
        return dropped
    return None


class _Memory:
    """This process's memory. Raises OSError for an address that it does not have."""

    def __init__(self, file: int) -> None:
        self._file = file

    def word(self, address: int) -> int:
        return int.from_bytes(os.pread(self._file, _WORD, address), sys.byteorder)

    def text(self, address: int) -> bytes:
        """The C string at an address."""
        return os.pread(self._file, _PATH_BYTES, address).partition(b"\0")[0]


def _first(memory: _Memory) -> int | None:
    """The address of the variable that points to the first destructor of this thread."""
    middle = _libc.__errno_location() // _WORD * _WORD
    near = range(middle - _REACH * _WORD, middle + _REACH * _WORD, _WORD)
    before = [memory.word(at) for at in near]
    free, argument = ctypes.cast(_libc.free, ctypes.c_void_p), _libc.malloc(1)
    # The third argument is an address in the library that the destructor belongs to. Without it, glibc crashes in a
    # thread that has no other destructor.
    _libc.__cxa_thread_atexit_impl(free, argument, free)
    for at, was in zip(near, before, strict=True):
        if (now := memory.word(at)) not in (was, 0):
            with contextlib.suppress(OSError, OverflowError):  # another word may have changed, too
                if memory.word(now + _ARGUMENT) == argument:
                    return at
    return None
