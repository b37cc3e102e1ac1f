"""A fabric that gives kept answers where the configuration of a model allows it, and passes on all other requests."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from zmq_offload.client.results import Timings
from zmq_offload.errors import OffloadError, ProtocolError
from zmq_offload.gateway.calls import Call, Cancel, Ended, Fabric, Outputs, tell
from zmq_offload.gateway.catalog import Catalog, Model
from zmq_offload.gateway.front import Front
from zmq_offload.gateway.responsecache import Frames, Key, ResponseCache, key_of
from zmq_offload.net.grants import Grant
from zmq_offload.protocol.packed import unpack
from zmq_offload.protocol.payload import Buffer


class Store(Protocol):
    """Where answers are kept. Methods belong to the event loop's thread, never block and never raise."""

    def get(self, key: Key, found: Callable[[Frames | None], None]) -> None:
        """Pass an answer to `found`, or None if there is none; at once or later."""

    def put(self, key: Key, frames: Sequence[Buffer], seconds: float) -> None:
        """Keep an answer for `seconds`. The frames may change after the return."""

    def close(self) -> None:
        """Keep and give no more."""


class OwnMemory:
    """A store in the memory of this process."""

    def __init__(self, cache: ResponseCache, clock: Callable[[], float] = time.monotonic) -> None:
        self.cache = cache
        self._clock = clock

    def get(self, key: Key, found: Callable[[Frames | None], None]) -> None:
        found(self.cache.get(key, self._clock()))

    def put(self, key: Key, frames: Sequence[Buffer], seconds: float) -> None:
        self.cache.put(key, frames, seconds, self._clock())

    def close(self) -> None:
        pass


class CachingFabric(Front):
    """A `zmq_offload.gateway.calls.Fabric` in front of another.

    `look` looks at a list of models: until it was called with a model that has a cache, requests go straight to the
    fabric. `unsure` says whether it should be called: requests came for models that may have a cache by now, or have
    none any more.
    """

    def __init__(self, fabric: Fabric, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(fabric)
        self._store = store
        self._clock = clock
        self.unsure = True
        self._cached: frozenset[str] = frozenset()
        """Names of models that have a cache, as the last list of models said."""

    def look(self, catalog: Catalog | OffloadError) -> None:
        """Note which models have a cache."""
        if isinstance(catalog, Catalog):
            self.unsure = False
            self._cached = frozenset(model.name for model in catalog.models if model.cache is not None)

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        if call.model not in self._cached:
            self.unsure = True
            return self._fabric.infer(call, grant, ended)
        return _Lookup(self, call, grant, ended).start()

    # --- the steps of a lookup ------------------------------------------------------------------------------

    def wanted(self, catalog: Catalog | OffloadError, call: Call) -> Model | None:
        """The version that a request asks for, if its answers are kept.

        A request for the latest version of a model with a canary may go to either, and the broker decides.
        """
        if not isinstance(catalog, Catalog):
            return None
        for model in catalog.versions(call.model):
            if model.is_meant(call.version, call.label):
                drawn = model.canary and call.version is None and not call.label
                return None if model.cache is None or drawn else model
        return None


class _Lookup:
    """A request that may be answered from the cache."""

    def __init__(self, owner: CachingFabric, call: Call, grant: Grant, ended: Ended) -> None:
        self._owner, self._call, self._grant, self._ended = owner, call, grant, ended
        self._started = owner._clock()
        self._canceled = self._over = False
        self._cancel: Cancel | None = None
        """Takes back what runs now, if that can be taken back."""

    def start(self) -> Cancel:
        cancel = self._owner._fabric.models(self._grant, self._listed, self._call.model, self._call.version)
        if self._cancel is None:
            self._cancel = cancel
        return self.cancel

    def cancel(self) -> None:
        self._canceled = True
        if self._cancel is not None:
            self._cancel()

    def _listed(self, catalog: Catalog | OffloadError) -> None:
        model = self._owner.wanted(catalog, self._call)
        key = None if model is None else key_of(model, self._call.inputs)
        if model is None or key is None or model.cache is None:
            self._owner.unsure = True
            self._run(self._ended)
            return
        self._cancel = _nothing
        self._owner._store.get(key, functools.partial(self._looked_up, key, model.cache.seconds))

    def _looked_up(self, key: Key, seconds: float, frames: Frames | None) -> None:
        if self._canceled:
            return
        statistics = self._owner.statistics.count(key.model, key.version)
        took = self._owner._clock() - self._started
        if frames is not None:
            try:
                tensors = unpack(frames)
            except ProtocolError:
                pass  # a store that others write to has something else there; the answer will replace it
            else:
                statistics.hit(self._call.inputs.layout.rows, took, time.time())
                tell(self._ended, Outputs(tensors, key.model, key.version, Timings(0.0, 0.0, 0.0, took)))
                return
        statistics.cache_miss.add(took)

        def ended(outcome: Outputs | OffloadError) -> None:
            # What runs refers to this, and would keep the tensors with it until a garbage collection.
            self._over, self._cancel = True, _nothing
            # "Latest" may have moved meanwhile: then the answer is another version's.
            if isinstance(outcome, Outputs) and outcome.version == key.version:
                self._owner._store.put(key, outcome.tensors.frames, seconds)
            self._ended(outcome)

        self._run(ended)

    def _run(self, ended: Ended) -> None:
        self._cancel = _nothing  # if the next line ends the request at once
        cancel = self._owner._fabric.infer(self._left(), self._grant, ended)
        if not self._over:
            self._cancel = cancel

    def _left(self) -> Call:
        """The call with the time that is left of its own."""
        call = self._call
        if call.timeout is None:
            return call
        return call._replace(timeout=call.timeout - (self._owner._clock() - self._started))


def _nothing() -> None:
    """There is nothing to take back."""
