"""The supervisors of a user on this machine tell each other to which cores their processes are bound.

They share a folder. Each has a file there and keeps it locked while it lives. A file that is not locked belongs to a
supervisor that is dead, and is removed. Where this does not work (no such folder, a file system without locks, another
container), a supervisor assumes that it is alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from workers.cores import Peer

log = logging.getLogger("workers.supervisor")

_PATIENCE = 1.0
"""Seconds to wait for the folder's lock. It is held briefly, but a supervisor that is stopped (SIGSTOP) while it holds
the lock must not stop the others."""


def default_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"zmq-offload-{os.geteuid()}"


class Peers:
    """This supervisor and the others on the machine. Call `close` at the end."""

    def __init__(self, cores: Sequence[int], processes: int, folder: Path | None = None) -> None:
        self._me = Peer(tuple(cores), processes)
        self._file: Path | None = None
        self._fd = -1
        try:
            self._folder = folder or default_folder()  # raises where no temporary folder can be written
            self._register()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def look(self) -> tuple[list[Peer], list[Peer]]:
        """The other supervisors: those that started before this one, and those that started after it."""
        if self._file is None:
            return [], []
        earlier: list[Peer] = []
        later: list[Peer] = []
        try:
            with self._locked():
                for file in sorted(self._folder.glob("*.json")):
                    if file != self._file and (peer := _read(file)) is not None:
                        (earlier if file.name < self._file.name else later).append(peer)
        except OSError as error:
            self._give_up(error)
        return earlier, later

    def hold(self, held: Sequence[tuple[int, ...]]) -> None:
        """Tell the others to which cores this supervisor's processes are bound."""
        self._me = Peer(self._me.cores, self._me.processes, tuple(held))
        if self._file is None:
            return
        try:
            with self._locked():
                self._write()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()
            os.close(self._fd)
            self._file = None

    def _register(self) -> None:
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        state = self._folder.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
            raise OSError(f"{self._folder} is not a folder that only this user can write to; remove it")
        with self._locked():
            file = self._folder / f"{time.monotonic_ns():020d}-{os.getpid()}.json"
            self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            self._file = file
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write()

    def _write(self) -> None:
        text = msgspec.json.encode(self._me)
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def _give_up(self, error: Exception) -> None:
        log.warning("cores are not shared with other supervisors: %s; using all cores", error)
        self.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            end = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise OSError(f"the lock of {self._folder} is not free") from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(folder)


def _read(file: Path) -> Peer | None:
    """The supervisor that a file belongs to. If it is dead, the file is removed, and None is returned."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # to open a pipe would block
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return msgspec.json.decode(os.pread(fd, 1 << 20, 0), type=Peer)
        file.unlink()
    except (msgspec.DecodeError, RecursionError):
        pass  # of another release
    finally:
        os.close(fd)
    return None
