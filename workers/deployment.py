"""Which versions of which models this worker serves: those of the repository that load. A fault in one leaves the
others alone."""

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
    """`executors` by (model, version). `refresh` follows the repository: new and replaced versions are loaded, removed
    ones dropped, and what does not load is logged once until its files change.

    `executors` is never changed, but replaced, and `changed` is called each time: so one thread can refresh while
    another serves. An executor that is not served any more is dropped by the next refresh, which then calls
    `give_back`: to unload a large one takes time that the serving thread does not have.
    """

    def __init__(
        self,
        repository: Repository,
        load: Loader,
        changed: Callable[[], None] = lambda: None,
        give_back: Callable[[], None] = lambda: None,
    ) -> None:
        self.executors: dict[Model, Executor] = {}
        self._repository = repository
        self._load = load
        self._changed = changed
        self._give_back = give_back
        self._loading = Loading()
        self._complaints: set[str] = set()
        self._leaving: list[Executor] = []
        self._left: list[weakref.ref[Executor]] = []

    def refresh(
        self,
        load: Loader | None = None,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        stopped: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Follow the repository until there is nothing to load, or `stopped`. Each load (by `load`, if given) takes
        place in a `turn`. Whether what is served changed."""
        self._drop_what_left()
        before = self.executors
        complaints = self._look()
        while not stopped() and (chosen := self._loading.next()) is not None:
            with turn():
                if stopped():
                    break
                log.info("model %s version %d is loading", *chosen[0])
                outcome = self._try(load or self._load, chosen[0])
            complaints = self._look(first=False)
            self._settle(*chosen, outcome)
            del outcome
        if not self.executors and os.path.isdir(self._repository.root):
            complaints.add(f"nothing is served: no model in {self._repository.root} loads")
        for complaint in sorted(complaints - self._complaints):
            log.error("%s", complaint)
        self._complaints = complaints
        return self.executors is not before

    def _try(self, load: Loader, model: Model) -> Executor | Exception:
        try:
            return load(self._repository, *model)
        except Exception as error:
            # What is wrong with one version, of whatever kind (memory that is not there, say), is its own affair.
            return error

    def _settle(self, model: Model, stamp: int, outcome: Executor | Exception) -> None:
        if not self._loading.ended(model, stamp):
            if not isinstance(outcome, Exception):
                self._leaving.append(outcome)  # it was removed or replaced meanwhile
            return
        if isinstance(outcome, Exception):
            expected = isinstance(outcome, OffloadError)
            text = str(outcome) if expected else f"{type(outcome).__name__}: {outcome}"
            log.error("model %s version %d is not served: %s", *model, text, exc_info=None if expected else outcome)
            self._replace(model, None)
        else:
            self._replace(model, outcome)
            log.info("model %s version %d is served", *model)

    def _look(self, first: bool = True) -> set[str]:
        """Drop what was removed. `first`: of a refresh. Returns what is wrong with the repository."""
        complaints: set[str] = set()
        for model in self._loading.looked(self._scan(complaints), first):
            if model in self.executors:
                log.info("model %s version %d was removed from the repository", *model)
                self._replace(model, None)
        return complaints

    def _replace(self, model: Model, executor: Executor | None) -> None:
        executors = dict(self.executors)
        old = executors.pop(model, None)
        if old is not None:
            self._leaving.append(old)
        if executor is not None:
            executors[model] = executor
        elif old is None:
            return
        self.executors = executors
        self._changed()

    def _drop_what_left(self) -> None:
        """By now the serving thread has `executors` as they were after the last refresh. Should it still run something
        for an older one, it drops that itself."""
        self._left += [weakref.ref(executor) for executor in self._leaving]
        self._leaving.clear()
        still = [left for left in self._left if left() is not None]
        if len(still) < len(self._left):
            self._left = still
            self._give_back()

    def _scan(self, complaints: set[str]) -> dict[Model, int]:
        """(model, version) -> a stamp that changes when the version is replaced.

        What is loaded of a folder that cannot be read now, or is gone as a whole, goes on being served: it does not
        need the disk, which may have been unmounted.
        """
        found: dict[Model, int] = {}
        root, known = self._repository.root, self._loading.settled
        if not os.path.isdir(root):
            what = "not a folder" if os.path.lexists(root) else "no such folder"
            serving = "; serving on with what is loaded" if self.executors else "; looking for it again and again"
            complaints.add(f"--repository {root.absolute()}: {what}{serving}")
            return dict(known)
        try:
            names = self._repository.models()
        except OffloadError as error:
            complaints.add(f"{error}; serving on with what is loaded")
            return dict(known)
        for name in names:
            try:
                versions = self._repository.versions(name)
            except OffloadError as error:
                complaints.add(f"{error}; serving on with what is loaded of it")
                found.update((model, stamp) for model, stamp in known.items() if model[0] == name)
                continue
            for version in versions:
                folder = self._repository.path(name, version)
                try:
                    # A version is put in place by renaming its folder, so its files have other inodes and times.
                    states = [(folder / file).stat() for file in (LIBRARY, DESCRIPTION)]
                    found[name, version] = hash(tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in states))
                except OSError:
                    found[name, version] = INCOMPLETE  # loading it says what is wrong
        return found
