"""The versions of a model repository, each made ready when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from zmq_offload.artifacts.repository import DESCRIPTION, ModelVersion, Repository
from zmq_offload.errors import NotFound

T = TypeVar("T")


class Loaded(Generic[T]):
    """Keeps what was made of each version, until the version changes. For one thread at a time."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._kept: dict[tuple[str, int], tuple[tuple[int, int], ModelVersion, T]] = {}

    def find(self, name: str, version: int | None, load: Callable[[ModelVersion, Path], T]) -> tuple[ModelVersion, T]:
        """A version (None: the latest), loaded by `load`, which gets its folder. Raises NotFound."""
        number = version or self._latest(name)
        folder = self.repository.path(name, number)
        try:
            state = (folder / DESCRIPTION).stat()
        except OSError:
            self._kept.pop((name, number), None)
            raise NotFound(f"model {name!r} version {number} is not in the repository; {self._there(name)}") from None
        stamp = state.st_ino, state.st_mtime_ns
        kept = self._kept.get((name, number))
        if kept is None or kept[0] != stamp:
            self._kept.pop((name, number), None)  # its memory is free before the other is loaded
            model = self.repository.read(name, number)
            kept = self._kept[name, number] = stamp, model, load(model, folder)
        return kept[1], kept[2]

    def _latest(self, name: str) -> int:
        versions = self.repository.versions(name)
        if not versions:
            raise NotFound(f"model {name!r} is not in the repository; {self._there(name)}")
        return versions[-1]

    def _there(self, name: str) -> str:
        versions = self.repository.versions(name)
        if versions:
            return f"its versions are {', '.join(map(str, versions))}"
        return f"its models are {', '.join(self.repository.models()) or 'none'}"
