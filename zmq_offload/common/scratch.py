"""Folders for work in progress: hidden, next to the result, and always removed.

A folder is locked while its process lives. If the process is killed, the next process that works in the same place
finds the folder unlocked and removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".zmq-offload-"
"""The prefix of a scratch folder among files of users. It has no part that they choose: whatever begins with a prefix
may be removed as stale."""

_live: set[Path] = set()


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder in `parent`, which exists; `prefix` begins with a dot, and is the same always.

    The folder is removed after the body, unless the body has renamed it. Folders that killed processes left under the
    same prefix are removed first. Raises OSError if nothing can be written there.
    """
    remove_stale(parent, prefix)
    folder, descriptor = _made(parent, prefix)
    _live.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _live.discard(folder)
        os.close(descriptor)  # and with it the lock


def put_in_place(folder: Path, place: Path) -> None:
    """Move a folder from a scratch folder to its place, after moving an existing one into the scratch folder.

    Two renames are faster than deleting, so that nobody sees half a folder. If the second fails, the first is undone.
    Raises OSError if a folder cannot be moved.
    """
    old = folder.with_name(f"{folder.name}.old")
    replaced = place.exists()
    if replaced:
        place.rename(old)
    try:
        folder.rename(place)
    except OSError:
        if replaced:
            old.rename(place)
        raise


def remove_stale(parent: Path, prefix: str) -> None:
    """Remove the scratch folders in `parent` whose processes have ended."""
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{prefix}*"):
            descriptor = _locked(folder)
            if descriptor is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def remove_live() -> None:
    """Remove all scratch folders of this process, when it ends without leaving their contexts."""
    for folder in list(_live):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folders_made(*folders: Path) -> Iterator[None]:
    """Make folders, with their parents. If the body fails, those that were made here and are empty are removed.

    Raises OSError if one cannot be made.
    """
    missing: list[Path] = []
    try:
        for folder in folders:
            absent = []
            for place in (folder, *folder.parents):
                if place.exists():
                    break
                absent.append(place)
            missing += absent[::-1]
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in reversed(missing):
            with contextlib.suppress(OSError):  # not empty, or never made
                place.rmdir()
        raise


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    """Make a folder and lock it. Returns the descriptor that holds the lock, too."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # the file system has no locks; nothing there is ever removed as stale
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists():  # else another process removed it, before it was locked, as stale
                return folder, descriptor
            os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """Lock a folder in which no process works, and return the descriptor. Returns None for others."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
