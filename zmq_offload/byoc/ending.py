"""How a forked child ends after TVM ran in its parent.

TVM keeps a pool of threads for each thread that computes, and destroys it when that thread ends. The pool's threads are
not in a forked child. There the destructor waits for ever: pthread_cond_destroy for waiters that the child does not
have, pthread_join for threads whose stacks glibc has reused. So the destructor must not run in the child, whatever its
exit code is.

glibc holds the destructors of a thread in a list. The list begins in a thread-local variable close to `errno`. That has
no name that could be looked up; it is found as the one that points to a destructor that was just added. If none does,
nothing is changed.
"""

from __future__ import annotations

import ctypes

_LIBRARY = b"libtvm_runtime"
_WORD = ctypes.sizeof(ctypes.c_void_p)
_REACH = 32
"""Words on each side of `errno` to look at; all of glibc's thread-local variables take 18."""

# The words of an entry, after the function: its argument, the library that it belongs to, the next entry.
_ARGUMENT, _OWNER, _NEXT = (i * _WORD for i in (1, 2, 3))
_NAME = _WORD  # of the library, in its `struct link_map` of <link.h>

_libc = ctypes.CDLL(None)
for _name, _result, _arguments in (
    ("__errno_location", ctypes.c_void_p, []),
    ("malloc", ctypes.c_void_p, [ctypes.c_size_t]),
    ("__cxa_thread_atexit_impl", ctypes.c_int, [ctypes.c_void_p] * 3),
):
    if (_function := getattr(_libc, _name, None)) is not None:
        _function.restype, _function.argtypes = _result, _arguments


def forget_pool() -> None:
    """Have the running thread's pool of TVM not destroyed when the thread or the process ends."""
    if not (hasattr(_libc, "__errno_location") and hasattr(_libc, "__cxa_thread_atexit_impl")):
        return  # another C library than glibc
    at = _first()
    while at and (entry := _read(at)):
        if _LIBRARY in ctypes.string_at(_read(_read(entry + _OWNER) + _NAME)):
            ctypes.c_void_p.from_address(at).value = _read(entry + _NEXT)
        else:
            at = entry + _NEXT


def _first() -> int | None:
    """The address of the variable that points to the first destructor of this thread."""
    middle = _libc.__errno_location() // _WORD * _WORD
    near = range(middle - _REACH * _WORD, middle + _REACH * _WORD, _WORD)
    before = [_read(at) for at in near]
    argument = _libc.malloc(1)
    _libc.__cxa_thread_atexit_impl(ctypes.cast(_libc.free, ctypes.c_void_p), argument, None)
    changed = [at for at, was in zip(near, before, strict=True) if _read(at) not in (was, 0)]
    # glibc may have noted other things, too: pointers, like this one, to what is larger than an entry.
    return next((at for at in changed if _read(_read(at) + _ARGUMENT) == argument), None)


def _read(address: int) -> int:
    return ctypes.c_void_p.from_address(address).value or 0
