"""Reads configurations of models again and again."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

from zmq_offload.artifacts.config import CONFIG, CONFIG_JSON, ModelConfig, read
from zmq_offload.errors import FailedPrecondition

_SETTLED_NS = 2_000_000_000
"""A file that changed within this time may change again without another time of change: file systems count in ticks."""


class ConfigReader:
    """Reads configurations again only when their files have changed: workers look often, and parsing takes their time.
    One that cannot be read, or is wrong, is read each time.

    A file that has just become empty is an error: a program that writes it in place has emptied it, and what it is to
    hold comes next. Taken for a configuration, it would let all versions be served, and take away all labels. An empty
    file that replaced another by a rename is complete."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[object, ModelConfig]] = {}
        self._inodes: dict[Path, int] = {}
        """Of the files that held something."""

    def read(self, folder: Path) -> ModelConfig:
        """What the function `read` returns or raises."""
        self._check_written(folder)
        stamp = _stamp(folder)
        known = self._known.pop(folder, None)
        config = read(folder) if stamp is None or known is None or known[0] != stamp else known[1]
        if stamp is not None:
            self._known[folder] = stamp, config
        return config

    def _check_written(self, folder: Path) -> None:
        file = folder / CONFIG
        try:
            state = file.stat()
        except OSError:
            return
        if state.st_size > 0:
            self._inodes[folder] = state.st_ino
        elif self._inodes.get(folder) == state.st_ino and _is_fresh(state):
            raise FailedPrecondition(
                f"{file}: it was emptied just now, as by a program that is writing it; replace it by a rename"
            )

    def keep(self, folders: Collection[Path]) -> None:
        """Forget all other folders."""
        for known in (self._known, self._inodes):
            for folder in known.keys() - set(folders):
                del known[folder]


def _is_fresh(state: os.stat_result) -> bool:
    return abs(time.time_ns() - state.st_ctime_ns) < _SETTLED_NS


def _stamp(folder: Path) -> object | None:
    """Another value whenever a configuration changes. None: there is none, or it changed just now, or the file cannot
    be looked at."""
    found: list[object] = []
    for name in (CONFIG, CONFIG_JSON):
        try:
            state = (folder / name).stat()
        except FileNotFoundError:
            continue
        except OSError:
            return None
        if _is_fresh(state):
            return None
        found += [name, state.st_dev, state.st_ino, state.st_mode, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    return tuple(found) or None
