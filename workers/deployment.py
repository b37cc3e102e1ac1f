"""Which versions of which models this worker serves: all in the repository that load. A fault in one version does not
affect the others."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeAlias

import msgspec

from workers.loading import INCOMPLETE, Loading, Model, labels_in_effect, lingering
from workers.loads import Loads
from workers.serving import Executor
from zmq_offload.artifacts.config import NO_CONFIG, ModelConfig
from zmq_offload.artifacts.configreader import ConfigReader
from zmq_offload.artifacts.repository import DESCRIPTION, LIBRARY, Repository
from zmq_offload.errors import OffloadError

log = logging.getLogger("workers")

Loader = Callable[[Repository, str, int], Executor]
_Loaded: TypeAlias = "tuple[Executor | Exception, object]"

_SCAN_EVERY = 0.1
"""Seconds between two scans while many versions load: a scan looks at all of them."""


class Deployment:
    """The executors by (model, version), kept up to date with the repository.

    `refresh` loads new and replaced versions and drops those that were removed, or that the configuration of the model
    leaves out. A version that does not load is logged once, until its files or its warm-up change. So is a
    configuration that is wrong; the last good one counts then. `seat` is the number of this process among its
    supervisor's, from 0: a model with `instances` is served by the first so many.

    A version that the configuration leaves out is served until another one is, and a label moves when its new version
    is served.

    One thread can refresh while another serves: `serving` is never modified but replaced, and then `changed` is called.
    An executor that is no longer served is dropped by the next refresh, which then calls
    `release_memory`. The serving thread does not wait for that.
    """

    def __init__(
        self,
        repository: Repository,
        load: Loader,
        changed: Callable[[], None] = lambda: None,
        release_memory: Callable[[], None] = lambda: None,
        seat: int = 0,
    ) -> None:
        self.executors: dict[Model, Executor] = {}
        self.configs: dict[str, ModelConfig] = {}
        """Of the models that have one."""
        self.serving: tuple[Mapping[Model, Executor], Mapping[str, ModelConfig]] = {}, {}
        """What is served, and the configurations by model, with the labels as they are in effect."""
        self._seat = seat
        self._repository = repository
        self._load = load
        self._changed = changed
        self._release_memory = release_memory
        self._loading = Loading()
        self._scan_at = 0.0
        self._lingers = False
        """Whether a version is served that is not wanted any more."""
        self._reader = ConfigReader()
        self._failed: dict[Model, object] = {}
        """Versions that did not load, with what they were to be warmed up with."""
        self._logged: set[str] = set()
        self._replaced: list[Executor] = []
        self._dropped: list[weakref.ref[Executor]] = []

    def config_of(self, name: str) -> ModelConfig:
        """The configuration of a model."""
        return self.configs.get(name, NO_CONFIG)

    def refresh(
        self,
        load: Loader | None = None,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        stopped: Callable[[], bool] = lambda: False,
        at_once: int = 1,
    ) -> bool:
        """Follow the repository until there is nothing to load, or until `stopped`. Each load, by `load` if given, is
        in a `turn`, and `at_once` of them run at a time. Returns whether the served versions changed."""
        self._drop_replaced()
        before = self.executors
        problems = self._scan_again()
        stamps: dict[Model, int] = {}
        loads: Loads[Model, _Loaded | None] = Loads(at_once)
        while True:
            while loads.room and not stopped() and (chosen := self._loading.next(loads.running)) is not None:
                model, stamps[model] = chosen
                loads.start(model, partial(self._load_in, load or self._load, turn, stopped, model))
            ended = loads.ended()
            if ended is None:
                break
            model, loaded = ended
            if loaded is None:  # stopped
                break
            if self._lingers or self._stamp(*model) != stamps[model] or time.monotonic() >= self._scan_at:
                problems = self._scan_again(first=False)
            self._settle(model, stamps[model], *loaded)
            del ended, loaded
            if self._lingers:  # until this version was there, maybe
                problems = self._scan_again(first=False)
        if not self.executors and not self.configs and os.path.isdir(self._repository.root):
            problems.add(f"nothing is served: no model in {self._repository.root} loads")
        for problem in sorted(problems - self._logged):
            log.error("%s", problem)
        self._logged = problems
        return self.executors is not before

    def _load_in(
        self,
        load: Loader,
        turn: Callable[[], AbstractContextManager[None]],
        stopped: Callable[[], bool],
        model: Model,
    ) -> _Loaded | None:
        """What came of loading a version, and what it was warmed up with; None if `stopped` before."""
        with turn():
            if stopped():
                return None
            log.info("model %s version %d is loading", *model)
            warmup = None
            try:
                warmup = self._warmup_of(model)
                return load(self._repository, *model), warmup
            except Exception as error:
                # Of any kind, such as a lack of memory: the other versions are served.
                return error, warmup

    def _warmup_of(self, model: Model) -> object:
        """What a version is to be warmed up with; another value if the file with the inputs is replaced."""
        wanted = self.config_of(model[0]).warmup
        file = self._repository.root / model[0] / ("" if wanted is None else wanted.inputs)
        try:
            return wanted, file.stat().st_mtime_ns if file.is_file() else 0
        except OSError:  # its name is too long, or it is removed just now
            return wanted, 0

    def _settle(self, model: Model, stamp: int, outcome: Executor | Exception, warmup: object) -> None:
        if not self._loading.ended(model, stamp):
            if not isinstance(outcome, Exception):
                self._replaced.append(outcome)  # the version was removed or replaced meanwhile
            return
        if isinstance(outcome, Exception):
            self._failed[model] = warmup
            expected = isinstance(outcome, OffloadError)
            text = str(outcome) if expected else f"{type(outcome).__name__}: {outcome}"
            log.error("model %s version %d is not served: %s", *model, text, exc_info=None if expected else outcome)
            self._replace(model, None)
        else:
            self._failed.pop(model, None)
            self._replace(model, outcome)
            log.info("model %s version %d is served", *model)

    def _scan_again(self, first: bool = True) -> set[str]:
        """Scan the repository and drop versions that were removed. `first`: the first scan of a refresh. Returns the
        problems that were found."""
        problems: set[str] = set()
        self._scan_at = time.monotonic() + _SCAN_EVERY
        configs = dict(self.configs)
        there = self._scan(problems, configs)
        if configs != self.configs:
            names = {name for name in {*configs, *self.configs} if configs.get(name) != self.configs.get(name)}
            # Its warm-up may be right now.
            self._loading.try_again(model for model in there if model[0] in names and model not in self.executors)
            self.configs = configs
            self._publish()
        for model in [failed for failed, warmup in self._failed.items() if warmup != self._warmup_of(failed)]:
            del self._failed[model]
            self._loading.again(model)
        for model in self._loading.scanned(there, first):
            self._failed.pop(model, None)
            if model in self.executors:
                log.info("model %s version %d is to be served no more", *model)
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
        self._publish()

    def _publish(self) -> None:
        """Let the serving thread have what is served now."""
        served = self._served()
        configs = dict(self.configs)
        for name, config in self.configs.items():
            if config.labels:
                labels = self._labels(name, config, served.get(name, set()))
                configs[name] = msgspec.structs.replace(config, labels=labels)
        self.serving = self.executors, configs
        self._changed()

    def _served(self) -> dict[str, set[int]]:
        """The served versions by model."""
        found: dict[str, set[int]] = {}
        for name, version in self.executors:
            found.setdefault(name, set()).add(version)
        return found

    def _labels(self, name: str, config: ModelConfig, served: set[int]) -> dict[str, int]:
        """What the labels of a model are to stand for now."""
        before = self.serving[1].get(name, NO_CONFIG)
        return labels_in_effect(config.labels, before.labels, served)

    def _drop_replaced(self) -> None:
        """Drop the executors that the last refresh replaced. The serving thread does not use them for new requests; if
        it still runs one, it drops the last reference itself."""
        self._dropped += [weakref.ref(executor) for executor in self._replaced]
        self._replaced.clear()
        alive = [dropped for dropped in self._dropped if dropped() is not None]
        if len(alive) < len(self._dropped):
            self._dropped = alive
            self._release_memory()

    def _scan(self, problems: set[str], configs: dict[str, ModelConfig]) -> dict[Model, int]:
        """(model, version) -> a stamp that changes when the version is replaced. Adds to `problems`, and changes
        `configs`.

        If a folder cannot be read, or the whole repository is gone, its loaded versions are still served: they do not
        need the disk, which may have been unmounted.
        """
        found: dict[Model, int] = {}
        served = self._served()
        self._lingers = False
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
        for name in configs.keys() - set(names):
            del configs[name]
        self._reader.keep([root / name for name in names])
        for name in names:
            config = configs.get(name, NO_CONFIG)
            try:
                config = self._reader.read(root / name)
            except OffloadError as error:
                if name not in configs and not any(model[0] == name for model in known):
                    # Without one, this worker would take labels and the canary from a fabric that knows them.
                    problems.add(f"{error.message}; the model is not served until that is right")
                    continue
                problems.add(f"{error.message}; its last good one counts")
            configs[name] = config
            if config is NO_CONFIG:
                del configs[name]
            try:
                versions = self._repository.versions(name)
            except OffloadError as error:
                problems.add(f"{error}; serving its loaded versions")
                found.update((model, stamp) for model, stamp in known.items() if model[0] == name)
                continue
            problems.update(_missing(name, config, versions))
            if config.instances is not None and self._seat >= config.instances:
                continue
            wanted = config.serves(versions)
            if not config.serves_none:
                there = served.get(name, set()) & set(versions)
                left = lingering(wanted, config.labels, self._labels(name, config, there), there)
                self._lingers |= bool(left)
                found.update(((name, version), known[name, version]) for version in left)
            found.update(((name, version), self._stamp(name, version)) for version in wanted)
        return found

    def _stamp(self, name: str, version: int) -> int:
        """A number that changes when the version is replaced."""
        folder = self._repository.path(name, version)
        try:
            # A version is replaced by renaming a folder, so its files have other inodes and times.
            states = [(folder / file).stat() for file in (LIBRARY, DESCRIPTION)]
        except OSError:
            return INCOMPLETE  # loading it reports what is wrong
        return hash(tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in states))


def _missing(name: str, config: ModelConfig, versions: Sequence[int]) -> list[str]:
    """What a configuration names that is not served."""
    served = config.serves(versions)
    named = [(f"label {label!r}", version) for label, version in sorted(config.labels.items())]
    if isinstance(config.versions, tuple):
        named += [("one of its versions", version) for version in config.versions]
    if config.canary is not None:
        named.append(("the canary", config.canary.version))
    return [
        f"model {name}: {what} is version {version}, which is not "
        f"{'listed in versions' if version in versions else 'in the repository'}"
        for what, version in named
        if version not in served
    ]
