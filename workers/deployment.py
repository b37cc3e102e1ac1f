"""Which versions of which models this worker serves: those of the repository that load. A fault in one leaves the
others alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from workers.serving import Executor
from zmq_offload.errors import OffloadError
from zmq_offload.repository import DESCRIPTION, LIBRARY, Repository

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
        self._complaints: set[str] = set()

    def refresh(self) -> bool:
        """Whether what is served changed."""
        complaints: set[str] = set()
        there = self._scan(complaints)
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
        if not self.executors:
            complaints.add(f"nothing is served: no model in {self._repository.root} loads")
        for complaint in sorted(complaints - self._complaints):
            log.error("%s", complaint)
        self._complaints = complaints
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

    def _scan(self, complaints: set[str]) -> dict[Model, int]:
        """(model, version) -> a stamp that changes when the version is replaced.

        What is loaded of a folder that cannot be read now goes on being served: it does not need the disk.
        """
        found: dict[Model, int] = {}
        try:
            names = self._repository.models()
        except OffloadError as error:
            complaints.add(f"{error}; serving on with what is loaded")
            return dict(self._seen)
        for name in names:
            try:
                versions = self._repository.versions(name)
            except OffloadError as error:
                complaints.add(f"{error}; serving on with what is loaded of it")
                found.update((model, stamp) for model, stamp in self._seen.items() if model[0] == name)
                continue
            for version in versions:
                folder = self._repository.path(name, version)
                try:
                    # A version is put in place by renaming its folder, so its files have other inodes and times.
                    states = [(folder / file).stat() for file in (LIBRARY, DESCRIPTION)]
                    found[name, version] = hash(tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in states))
                except OSError:
                    found[name, version] = 0  # loading it says what is wrong
        return found
