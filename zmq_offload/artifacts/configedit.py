"""Changes of `config.toml`, which is the one place that says which versions and labels are served.

A changed file replaces the old one in one step, so that a worker reads either; comments and order stay. Changes of a
model wait for each other, also those of other processes, so that none is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zmq_offload.artifacts.config import CONFIG, CONFIG_JSON, ModelConfig, check_label, parse, read
from zmq_offload.artifacts.repository import Repository
from zmq_offload.common.extras import needs
from zmq_offload.errors import FailedPrecondition, InvalidArgument, NotFound

_PATIENCE = 10.0
"""Seconds to wait for another program that changes the same file: a change takes milliseconds."""

_DRAFT = ".config-"

_ABANDONED = 60.0
"""Seconds after which nobody writes a draft any more."""


def load(repository: Repository, name: str, version: int | None = None) -> ModelConfig:
    """Let workers serve a model again as before it was unloaded, else all of its versions, or one version more.

    Returns the new configuration. Raises NotFound for a model or version that is not in the repository, and
    FailedPrecondition for a configuration that cannot be read or written.
    """
    there = _versions(repository, name, version)

    def change(document: Any, config: ModelConfig) -> None:
        if version is None:
            if not config.unloaded or config.versions == ():
                document.pop("versions", None)
        else:
            _serve(document, config, there, {*config.serves(there), version})
        document.pop("unloaded", None)

    return _change(repository.root / name, change)


def unload(repository: Repository, name: str, version: int | None = None) -> ModelConfig:
    """Let workers serve no version of a model, or one version less. Returns and raises what `load` does."""
    there = _versions(repository, name, version)

    def change(document: Any, config: ModelConfig) -> None:
        if version is None:
            document["unloaded"] = True  # and the versions stay listed for the next load
        else:
            _serve(document, config, there, {*config.serves(there)} - {version})

    return _change(repository.root / name, change)


def label(repository: Repository, name: str, label: str, version: int | None) -> ModelConfig:
    """Let a label stand for a version, or for none. Returns and raises what `load` does, and InvalidArgument for a word
    that cannot be a label."""
    check_label(label)
    there = _versions(repository, name, version)

    def change(document: Any, config: ModelConfig) -> None:
        if version is None:
            if label not in config.labels:
                known = ", ".join(sorted(config.labels)) or "none"
                raise NotFound(f"model {name!r} has no label {label!r}; its labels: {known}")
            del document["labels"][label]
            return
        if version not in config.serves(there):
            raise FailedPrecondition(
                f"model {name!r} version {version} is not served: {CONFIG} does not list it; load it first"
            )
        document.setdefault("labels", {})[label] = version

    return _change(repository.root / name, change)


def _serve(document: Any, config: ModelConfig, there: list[int], wanted: set[int]) -> None:
    # What is served already stays as it is said: "all" goes on to take new versions.
    if wanted != set(config.serves(there)):
        document["versions"] = sorted(wanted)


def _versions(repository: Repository, name: str, version: int | None) -> list[int]:
    there = repository.versions(name)
    if not (repository.root / name).is_dir():
        known = ", ".join(repository.models()) or "none"
        raise NotFound(f"{repository.root}: there is no model {name!r}; its models: {known}")
    if version is not None and version not in there:
        listing = ", ".join(map(str, there)) or "none"
        raise NotFound(f"{repository.root}: model {name!r} has no version {version}; its versions: {listing}")
    return there


def _change(folder: Path, change: Callable[[Any, ModelConfig], None]) -> ModelConfig:
    """Read, change, check and replace a file."""
    with needs("cli"):
        import tomlkit
    if (folder / CONFIG_JSON).exists():
        raise FailedPrecondition(
            f"{folder / CONFIG_JSON} can only be changed by hand; or write a {CONFIG} in its place"
        )
    file = folder / CONFIG
    with _alone(folder):
        config = read(folder)
        # TOML is UTF-8 in every locale, and its line ends stay as they are.
        before = file.read_bytes() if file.exists() else b""
        document = tomlkit.parse(before.decode("utf-8-sig"))
        change(document, config)
        content = tomlkit.dumps(document).encode()
        try:
            changed = parse(content)
        except InvalidArgument as error:
            raise FailedPrecondition(f"{file} would be wrong: {error.message}") from None
        if content != before:
            _replace(file, content)
    return changed


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other changes in a folder, and let others wait. The system ends the wait if their process dies.

    Raises FailedPrecondition after `_PATIENCE`: the other program may be stopped.
    """
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FailedPrecondition(f"{folder} cannot be read: {error.strerror or error}") from None
    try:
        end = time.monotonic() + _PATIENCE
        while not _locked(opened):
            if time.monotonic() >= end:
                text = f"another program has been changing {CONFIG} for {_PATIENCE:g} s; see what it is, and try again"
                raise FailedPrecondition(f"{folder}: {text}")
            time.sleep(0.01)
        for draft in folder.glob(f"{_DRAFT}*"):  # of a program that was killed
            with contextlib.suppress(OSError):
                if time.time() - draft.stat().st_mtime > _ABANDONED:
                    draft.unlink()
        yield
    finally:
        os.close(opened)


def _locked(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _replace(file: Path, content: bytes) -> None:
    temporary = None
    try:
        mode = file.stat().st_mode & 0o777 if file.exists() else 0o644
        descriptor, temporary = tempfile.mkstemp(prefix=_DRAFT, dir=file.parent)
        with os.fdopen(descriptor, "wb") as written:
            written.write(content)
            os.fchmod(descriptor, mode)
            written.flush()
            os.fsync(descriptor)  # an empty file after a loss of power would be another configuration
        os.replace(temporary, file)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise FailedPrecondition(f"{file} cannot be written: {error.strerror or error}") from None
