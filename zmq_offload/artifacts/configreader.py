"""Reads configurations of models again and again."""

from __future__ import annotations

import contextlib
import os
import stat
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

    An empty file that has just changed is an error: a program that writes it in place has emptied it, and what it is to
    hold comes next. Taken for a configuration, it would let all versions be served, and take away all labels."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[object, ModelConfig]] = {}

    def read(self, folder: Path) -> ModelConfig:
        """What the function `read` returns or raises."""
        stamp = _stamp(folder)
        if stamp is None:
            _check_written(folder / CONFIG)
        known = self._known.pop(folder, None)
        config = read(folder) if stamp is None or known is None or known[0] != stamp else known[1]
        if stamp is not None:
            self._known[folder] = stamp, config
        return config

    def keep(self, folders: Collection[Path]) -> None:
        """Forget all other folders."""
        for folder in self._known.keys() - set(folders):
            del self._known[folder]


def _check_written(file: Path) -> None:
    with contextlib.suppress(OSError):
        state = file.stat()
        if state.st_size == 0 and stat.S_ISREG(state.st_mode) and _is_fresh(state):
            raise FailedPrecondition(
                f"{file}: it was emptied just now, as by a program that is writing it; replace it by a rename"
            )


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
