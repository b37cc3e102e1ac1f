"""Which versions of which models this worker serves: all in the repository that load. A fault in one version does not
affect the others."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from workers.loading import INCOMPLETE, Loading, Model
from workers.serving import Executor
from zmq_offload.artifacts.repository import DESCRIPTION, LIBRARY, Repository
from zmq_offload.errors import OffloadError

log = logging.getLogger("workers")

Loader = Callable[[Repository, str, int], Executor]


class Deployment:
    """`executors` by (model, version), kept up to date with the repository.

    `refresh` loads new and replaced versions and drops removed ones. A version that does not load is logged once, until
    its files change. One thread can refresh while another serves: `executors` is never modified but replaced, and then
    `changed` is called. An executor that is no longer served is dropped by the next refresh, which then calls
    `release_memory`. The serving thread does not wait for that.
    """

    def __init__(
        self,
        repository: Repository,
        load: Loader,
        changed: Callable[[], None] = lambda: None,
        release_memory: Callable[[], None] = lambda: None,
    ) -> None:
        self.executors: dict[Model, Executor] = {}
        self._repository = repository
        self._load = load
        self._changed = changed
        self._release_memory = release_memory
        self._loading = Loading()
        self._logged: set[str] = set()
        self._replaced: list[Executor] = []
        self._dropped: list[weakref.ref[Executor]] = []

    def refresh(
        self,
        load: Loader | None = None,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Follow the repository until there is nothing to load, or until `stopped`. Each load, by `load` if given, is
        in a `turn`. Returns whether the served versions changed."""
        self._drop_replaced()
        before = self.executors
        problems = self._scan_again()
        while not stopped() and (chosen := self._loading.next()) is not None:
            with turn():
                if stopped():
                    break
                log.info("model %s version %d is loading", *chosen[0])
                outcome = self._try(load or self._load, chosen[0])
            problems = self._scan_again(first=False)
            self._settle(*chosen, outcome)
            del outcome
        if not self.executors and os.path.isdir(self._repository.root):
            problems.add(f"nothing is served: no model in {self._repository.root} loads")
        for problem in sorted(problems - self._logged):
            log.error("%s", problem)
        self._logged = problems
        return self.executors is not before

    def _try(self, load: Loader, model: Model) -> Executor | Exception:
        try:
            return load(self._repository, *model)
        except Exception as error:
            # Of any kind, such as a lack of memory: the other versions are served.
            return error

    def _settle(self, model: Model, stamp: int, outcome: Executor | Exception) -> None:
        if not self._loading.ended(model, stamp):
            if not isinstance(outcome, Exception):
                self._replaced.append(outcome)  # the version was removed or replaced meanwhile
            return
        if isinstance(outcome, Exception):
            expected = isinstance(outcome, OffloadError)
            text = str(outcome) if expected else f"{type(outcome).__name__}: {outcome}"
            log.error("model %s version %d is not served: %s", *model, text, exc_info=None if expected else outcome)
            self._replace(model, None)
        else:
            self._replace(model, outcome)
            log.info("model %s version %d is served", *model)

    def _scan_again(self, first: bool = True) -> set[str]:
        """Scan the repository and drop versions that were removed. `first`: the first scan of a refresh. Returns the
        problems that were found."""
        problems: set[str] = set()
        for model in self._loading.scanned(self._scan(problems), first):
            if model in self.executors:
                log.info("model %s version %d was removed from the repository", *model)
                self._replace(model, None)
        return problems

    def _replace(self, model: Model, executor: Executor | None) -> None:
        executors = dict(self.executors)
        old = executors.pop(model, None)
        if old is not None:
            self._replaced.append(old)
        if executor is not None:
            executors[model] = executor
        elif old is None:
            return
        self.executors = executors
        self._changed()

    def _drop_replaced(self) -> None:
        """Drop the executors that the last refresh replaced. The serving thread does not use them for new requests; if
        it still runs one, it drops the last reference itself."""
        self._dropped += [weakref.ref(executor) for executor in self._replaced]
        self._replaced.clear()
        alive = [dropped for dropped in self._dropped if dropped() is not None]
        if len(alive) < len(self._dropped):
            self._dropped = alive
            self._release_memory()

    def _scan(self, problems: set[str]) -> dict[Model, int]:
        """(model, version) -> a stamp that changes when the version is replaced. Adds to `problems`.

        If a folder cannot be read, or the whole repository is gone, its loaded versions are still served: they do not
        need the disk, which may have been unmounted.
        """
        found: dict[Model, int] = {}
        root, known = self._repository.root, self._loading.settled
        if not os.path.isdir(root):
            what = "not a folder" if os.path.lexists(root) else "no such folder"
            serving = "; serving the loaded versions" if self.executors else "; waiting for it"
            problems.add(f"--repository {root.absolute()}: {what}{serving}")
            return dict(known)
        try:
            names = self._repository.models()
        except OffloadError as error:
            problems.add(f"{error}; serving the loaded versions")
            return dict(known)
        for name in names:
            try:
                versions = self._repository.versions(name)
            except OffloadError as error:
                problems.add(f"{error}; serving its loaded versions")
                found.update((model, stamp) for model, stamp in known.items() if model[0] == name)
                continue
            for version in versions:
                folder = self._repository.path(name, version)
                try:
                    # A version is replaced by renaming a folder, so its files have other inodes and times.
                    states = [(folder / file).stat() for file in (LIBRARY, DESCRIPTION)]
                    found[name, version] = hash(tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in states))
                except OSError:
                    found[name, version] = INCOMPLETE  # loading it reports what is wrong
        return found
