"""Socket files of ipc:// endpoints: a second program does not take one that is in use, and none stays behind.

libzmq removes whatever has the path before it binds, a socket that another process listens at included: that one goes
on without a word and is never connected to again. And it leaves the file when it closes.
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
"""Seconds. Binding takes less than a millisecond."""


class SocketFile:
    """The file of one bound endpoint; `remove` when it is closed."""

    def __init__(self, path: str) -> None:
        self._path = path
        found = os.stat(path)
        self._identity = found.st_dev, found.st_ino

    def remove(self) -> None:
        """Remove the file, unless it is another program's by now. Calling it again does nothing."""
        with _locked(self._path), contextlib.suppress(OSError):
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self._path)


def bind(endpoint: str, bind: Callable[[], object]) -> SocketFile | None:
    """Call `bind` if nobody listens at an ipc:// endpoint; a file that a dead program left is replaced.

    Returns None where there is no file: other transports, abstract names (ipc://@NAME), and paths that libzmq chooses.
    Raises FailedPrecondition if the path is in use, or is a file of another kind.
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
        return  # it does not exist; if it cannot exist, binding says why
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(f"cannot bind to {endpoint}: {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code == errno.ECONNREFUSED:
        return  # whoever listened there is gone
    if code in (0, errno.EAGAIN, errno.EINPROGRESS):
        raise FailedPrecondition(f"cannot bind to {endpoint}: another program listens there")
    raise FailedPrecondition(f"cannot bind to {endpoint}: {path} exists, and {os.strerror(code)}")


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep other programs of this project from the path meanwhile: by a lock on its folder, which leaves no file."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without the right to read the folder there is no lock, but the rest works
            folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            _lock(folder)
        yield


def _lock(folder: int) -> None:
    """Take the lock, or do without: anybody may lock /tmp for ever, and this must not wait for them."""
    end = time.monotonic() + _LOCK_WITHIN
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)
