"""TVM's pools of threads, and forks.

TVM keeps a pool of threads for each thread that computes, and destroys it when that thread ends. The pool's threads are
not in a forked child. A run would wait for them for ever, so it is refused there. Its destructor would wait, too:
pthread_cond_destroy for waiters that the child does not have, pthread_join for threads whose stacks glibc has reused.
It must not run in the child, or the child would never end.

glibc holds the destructors of a thread in a list. The list begins in a thread-local variable close to `errno`. That has
no name that could be looked up; it is found as the one that points to a destructor that was just added. If none does,
nothing is changed. Memory is read through /proc/self/mem: a word that is not an address is an error there, not the end
of the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading

import tvm

from zmq_offload.common.lifetime import tell_of_forks
from zmq_offload.errors import FailedPrecondition

_LIBRARY = b"libtvm_runtime"
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


@functools.cache
def pool_threads() -> int:
    """How many threads TVM computes with. To ask makes a pool of them for the thread that asks, and a child that is
    forked from this one would wait for them; so a thread asks that ends at once."""
    asked: list[int] = []
    thread = threading.Thread(target=lambda: asked.append(tvm.runtime.num_threads()))
    thread.start()
    thread.join()
    return asked[0]


class _Threads:
    """Whether TVM can run here."""

    def __init__(self) -> None:
        self._used = self.lost = False
        tell_of_forks(self)

    def forget(self) -> None:
        self.lost |= self._used and pool_threads() > 1
        if self._used:
            _forget_pool()

    def use(self) -> None:
        """TVM is about to run."""
        self.check()
        if not self._used:
            pool_threads()  # known before a fork
            self._used = True

    def check(self) -> None:
        """Raises FailedPrecondition in a child of a process that has run a model."""
        if self.lost:
            raise FailedPrecondition(
                "TVM ran in this process before it was forked, and its threads are not in the child: "
                "load and run models only after the fork, or start processes by spawn"
            )


THREADS = _Threads()


def _forget_pool() -> None:
    """Have the running thread's pool of TVM not destroyed when the thread or the process ends."""
    if not (hasattr(_libc, "__errno_location") and hasattr(_libc, "__cxa_thread_atexit_impl")):
        return  # another C library than glibc
    with contextlib.suppress(OSError, OverflowError), open("/proc/self/mem", "rb", buffering=0) as file:
        memory = _Memory(file.fileno())
        at = _first(memory)
        while at and (entry := memory.word(at)):
            if _LIBRARY in memory.text(memory.word(memory.word(entry + _OWNER) + _NAME)):
                ctypes.c_void_p.from_address(at).value = memory.word(entry + _NEXT)
            else:
                at = entry + _NEXT


class _Memory:
    """This process's memory. Raises OSError for addresses that it does not have."""

    def __init__(self, file: int) -> None:
        self._file = file

    def word(self, address: int) -> int:
        return int.from_bytes(os.pread(self._file, _WORD, address), sys.byteorder)

    def text(self, address: int) -> bytes:
        """The beginning of a C string."""
        return os.pread(self._file, _PATH_BYTES, address).partition(b"\0")[0]


def _first(memory: _Memory) -> int | None:
    """The address of the variable that points to the first destructor of this thread."""
    middle = _libc.__errno_location() // _WORD * _WORD
    near = range(middle - _REACH * _WORD, middle + _REACH * _WORD, _WORD)
    before = [memory.word(at) for at in near]
    free, argument = ctypes.cast(_libc.free, ctypes.c_void_p), _libc.malloc(1)
    # glibc wants an address in the library that the destructor belongs to; it crashes for none in a thread that has no
    # other destructor.
    _libc.__cxa_thread_atexit_impl(free, argument, free)
    for at, was in zip(near, before, strict=True):
        if (now := memory.word(at)) not in (was, 0):
            with contextlib.suppress(OSError, OverflowError):  # glibc may have noted other things, too
                if memory.word(now + _ARGUMENT) == argument:
                    return at
    return None
