"""Which versions of which models this worker serves: those of the repository that load. A fault in one leaves the
others alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from workers.serving import Executor
from zmq_offload.errors import OffloadError
from zmq_offload.repository import LIBRARY, Repository

log = logging.getLogger("workers")

Model = tuple[str, int]
Loader = Callable[[Repository, str, int], Executor]


class Deployment:
    """`executors` by (model, version). `refresh` follows the repository: new and replaced versions are loaded, removed
    ones dropped, and what does not load is logged once until its files change."""

    def __init__(self, repository: Repository, load: Loader) -> None:
        self.executors: dict[Model, Executor] = {}
        self._repository = repository
        self._load = load
        self._seen: dict[Model, int] = {}
        self._unreadable = False

    def refresh(self) -> bool:
        """Whether what is served changed."""
        try:
            there = self._scan()
        except OffloadError as error:
            # What is loaded goes on serving: it does not need the disk.
            if not self._unreadable:
                log.error("%s; serving on with what is loaded", error)
            self._unreadable = True
            return False
        self._unreadable = False
        changed = False
        for model in [model for model in self._seen if model not in there]:
            del self._seen[model]
            if self.executors.pop(model, None) is not None:
                log.info("model %s version %d was removed from the repository", *model)
                changed = True
        for model, stamp in there.items():
            if self._seen.get(model) != stamp:
                self._seen[model] = stamp
                changed |= self._deploy(model)
        return changed

    def _deploy(self, model: Model) -> bool:
        try:
            self.executors[model] = self._load(self._repository, *model)
        except Exception as error:
            # What is wrong with one version, of whatever kind (memory that is not there, say), is its own affair.
            expected = isinstance(error, OffloadError)
            text = str(error) if expected else f"{type(error).__name__}: {error}"
            log.error("model %s version %d is not served: %s", *model, text, exc_info=not expected)
            return self.executors.pop(model, None) is not None
        log.info("model %s version %d is served", *model)
        return True

    def _scan(self) -> dict[Model, int]:
        """(model, version) -> a stamp that changes when the version is replaced."""
        found = {}
        for name in self._repository.models():
            for version in self._repository.versions(name):
                folder = self._repository.path(name, version)
                try:
                    # A version is put in place by renaming its folder, so the library has another inode and time.
                    state = (folder / LIBRARY).stat()
                    found[name, version] = hash((state.st_ino, state.st_mtime_ns, state.st_size))
                except OSError:
                    found[name, version] = 0  # loading it says what is wrong
        return found
