"""Folders for work in progress: hidden, next to the place of the result, and removed whatever happens.

A folder is locked while its process lives. If the process is killed, the next one that works in the same place finds
the folder unlocked and removes it.
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

_live: set[Path] = set()


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, which exists; `prefix` begins with a dot. It is gone after the body, unless the body
    has renamed it. What killed processes left under the same prefix is removed first.

    Raises OSError if nothing can be written there.
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
    """Rename a folder inside a scratch folder to its place, and what is there into that scratch folder first: deleting
    takes longer than two renames, and nobody must see half of it. If the second one fails, the first is undone.

    Raises OSError if it cannot be done.
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
    """Remove all scratch folders of this process, which is about to end without leaving their contexts."""
    for folder in list(_live):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folders_made(*folders: Path) -> Iterator[None]:
    """Make these folders, with their parents. If the body fails, those that were made and are empty are removed.

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
            with contextlib.suppress(OSError):  # not empty, or not made
                place.rmdir()
        raise


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    """A folder and the descriptor that holds its lock; another process may take a new one for stale before that."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # a file system without locks: nothing there is ever taken for stale
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """The descriptor of a folder that no process works in, which is locked now; else None."""
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
