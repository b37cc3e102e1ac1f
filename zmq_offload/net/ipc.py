"""Socket files of ipc:// endpoints: one that is in use is not taken over, and none is left on disk.

Before libzmq binds, it removes any file at the path, even the socket of a running process, which nobody can then reach.
When libzmq closes a socket, it leaves the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator

from zmq_offload.errors import FailedPrecondition

_LOCK_WITHIN = 2.0
"""Seconds to wait for the lock. Binding takes less than a millisecond."""


class SocketFile:
    """The file of a bound endpoint; `remove` it when the socket is closed."""

    def __init__(self, path: str) -> None:
        self._path = path
        found = os.stat(path)
        self._identity = found.st_dev, found.st_ino

    def remove(self) -> None:
        """Remove the file, unless it belongs to another program by now. A second call does nothing."""
        with _locked(self._path), contextlib.suppress(OSError):
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self._path)


def bind(endpoint: str, bind: Callable[[], object]) -> SocketFile | None:
    """Call `bind` if nobody listens at an ipc:// endpoint; the file of a dead program is replaced.

    Returns None if there is no file: for other transports, abstract names (ipc://@NAME) and paths that libzmq chooses.
    Raises FailedPrecondition if the path is in use or is a file of another kind.
    """
    path = endpoint.removeprefix("ipc://")
    if path == endpoint or path.startswith(("@", "*")):
        bind()
        return None
    with _locked(path):
        _check_free(endpoint, path)
        bind()
        return SocketFile(path)


def _check_free(endpoint: str, path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # it does not exist; if the folder does not either, bind raises
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(f"cannot bind to {endpoint}: {path} is not a socket; use another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code == errno.ECONNREFUSED:
        return  # the program that listened has ended
    if code in (0, errno.EAGAIN, errno.EINPROGRESS):
        raise FailedPrecondition(f"cannot bind to {endpoint}: another program listens there; use another path")
    raise FailedPrecondition(f"cannot bind to {endpoint}: {path} exists: {os.strerror(code)}")


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep other programs of this project from binding there, by a lock on the folder (which leaves no file)."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # the folder cannot be read: go on without a lock
            folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            _lock(folder)
        yield


def _lock(folder: int) -> None:
    """Take the lock, or go on without it: any user may hold a lock on /tmp forever."""
    end = time.monotonic() + _LOCK_WITHIN
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)
