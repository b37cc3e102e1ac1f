"""Files that a program reads again when they change."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from zmq_offload.errors import OffloadError

_Stamp: TypeAlias = "tuple[int, int, int, int] | int | None"
"""What tells whether a file changed: parts of its status, or the error."""

Value = TypeVar("Value")


class Watched(Generic[Value]):
    """What files say. `kept` says in the log what stays as it was if they cannot be read.

    Raises what `read` raises, once, when it is made.
    """

    def __init__(self, paths: tuple[str, ...], read: Callable[[], Value], log: logging.Logger, kept: str) -> None:
        self._paths, self._read, self._log, self._kept = paths, read, log, kept
        self._complaint = ""
        self._stamps = self._look()
        self.value = read()

    def reload(self) -> bool:
        """Read the files again if one changed. Returns whether `value` is new.

        If they cannot be read, the value stays, which is logged once, and each call tries again: a revocation must not
        be lost because a file could not be opened for a moment.
        """
        stamps = self._look()  # before the files are read, so that a change in between is seen next time
        if stamps == self._stamps:
            return False
        try:
            self.value = self._read()
        except OffloadError as error:
            if self._complaint != str(error):
                self._log.error("%s; %s", error, self._kept)
            self._complaint = str(error)
            return False
        self._stamps, self._complaint = stamps, ""
        return True

    def _look(self) -> list[_Stamp]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: str) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
