"""Memory that several processes map: made, opened, checked and locked. All that asks the kernel about it is here."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import sys
from pathlib import Path
from typing import NamedTuple

from zmq_offload.net.sharedmemory import layout

NAME = "zmq-offload"
_LINK = f"/memfd:{NAME} (deleted)"
_MFD_NOEXEC_SEAL = 0x8
"""Linux 6.3. Some systems allow no memory without it."""


class Unreadable(Exception):
    """A reference cannot be followed: its owner is gone, or it is not to memory that one may trust."""


class Use(NamedTuple):
    """How an arena is used, in bytes."""

    arena_bytes: int
    """The most that it may have."""
    taken_bytes: int
    """What the kernel gave, heads included."""
    lent_bytes: int
    """Of tensors in it that others may read."""
    mapped_bytes: int
    """Of arenas that its owner has mapped."""


def _has_all() -> bool:
    return (
        sys.platform == "linux"
        and sys.maxsize > 2**32  # the layout of struct flock, and room for mappings
        and all(hasattr(os, name) for name in ("memfd_create", "MFD_ALLOW_SEALING"))
        and all(hasattr(fcntl, name) for name in ("F_OFD_SETLK", "F_ADD_SEALS", "F_SEAL_SEAL"))
    )


SUPPORTED = _has_all()
"""Whether this system has what is needed."""

if SUPPORTED:
    _SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    _SETLK = fcntl.F_OFD_SETLK
    _READ, _WRITE, _UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK

_flock = struct.Struct("@hhqqi4x").pack

_BLOCK = 512
"""Bytes of what stat calls a block, whatever the file system."""

_LOCKS = 2**33
"""Positions that the locks of a cell may have. They are no positions of bytes, and locks do not touch each other:
the kernel would join them."""

PINS = 2**32
"""Read locks of one descriptor that differ."""


OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_STRICT = b"2\n"


def make(size: int) -> int:
    """A descriptor of `size` new bytes, which only this process has, and whose size is sealed.

    Raises OSError, also on a system that may refuse the memory when it is first written, which ends the process.
    """
    if OVERCOMMIT.read_bytes() == _STRICT:
        raise OSError(errno.ENOTSUP, "vm.overcommit_memory is 2")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(NAME, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create(NAME, flags)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_of(pid: int, fd: int) -> tuple[int, int]:
    """Open the memory that descriptor `fd` of process `pid` is. Returns a descriptor of its own, and the size.

    Raises Unreadable.
    """
    path = f"/proc/{pid}/fd/{fd}"
    try:
        # Looked at before it is opened: to open a pipe or a device may do something.
        if os.readlink(path) != _LINK:
            raise Unreadable(f"descriptor {fd} of process {pid} is no shared memory")
        own = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise Unreadable(f"descriptor {fd} of process {pid} cannot be opened: {error.strerror}") from None
    try:
        found = os.fstat(own)
        with contextlib.suppress(OSError):  # it is no file in memory
            if (
                stat.S_ISREG(found.st_mode)
                and found.st_uid == os.geteuid()
                and layout.DATA_AT <= found.st_size <= layout.DATA_AT + layout.MOST_BYTES
                and fcntl.fcntl(own, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            ):
                return own, found.st_size
        raise Unreadable(f"descriptor {fd} of process {pid} is not sealed memory of this user")
    except BaseException:
        os.close(own)
        raise


def map_heads(fd: int) -> memoryview:
    """The heads of an arena."""
    return memoryview(mmap.mmap(fd, layout.DATA_AT))


def use_of(fd: int, heads: memoryview, arena_bytes: int) -> Use:
    """How an arena is used. Its heads are written by others, who may be wrong."""
    taken = os.fstat(fd).st_blocks * _BLOCK
    return Use(arena_bytes, taken, min(layout.lent_bytes(heads), arena_bytes), layout.read_mapped(heads))


def map_data(fd: int, size: int, *, writable: bool) -> mmap.mmap:
    """The data of an arena of `size` bytes in all."""
    prot = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    return mmap.mmap(fd, size - layout.DATA_AT, prot=prot, offset=layout.DATA_AT)


def pin(fd: int, cell: int, number: int) -> bool:
    """Take a read lock of a cell, with a number that no other one of this descriptor has. False if the cell's owner has
    the write lock: it is about to use the cell again."""
    return _lock(fd, _READ, cell * _LOCKS + 2 * number, 1)


def unpin(fd: int, cell: int, number: int) -> None:
    """Give up a read lock."""
    fcntl.fcntl(fd, _SETLK, _flock(_UNLOCK, os.SEEK_SET, cell * _LOCKS + 2 * number, 1, 0))


def claim(fd: int, cell: int) -> bool:
    """Take the write lock of a cell. False if somebody has pinned it."""
    return _lock(fd, _WRITE, cell * _LOCKS, _LOCKS)


def unclaim(fd: int, cell: int) -> None:
    """Give up a write lock."""
    fcntl.fcntl(fd, _SETLK, _flock(_UNLOCK, os.SEEK_SET, cell * _LOCKS, _LOCKS, 0))


def _lock(fd: int, kind: int, start: int, length: int) -> bool:
    try:
        fcntl.fcntl(fd, _SETLK, _flock(kind, os.SEEK_SET, start, length, 0))
    except OSError:  # EAGAIN, or the kernel has no room for more locks
        return False
    return True
