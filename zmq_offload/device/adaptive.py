"""An adaptive bundle: each item runs by the split that a controller chooses, or as a whole on this device."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

from zmq_offload.artifacts.manifest import BundleSplit, Manifest
from zmq_offload.common.suggest import did_you_mean
from zmq_offload.device.absent import Absent
from zmq_offload.device.controller import HERE, Chosen, Controller, Objective, SplitFacts
from zmq_offload.device.items import Item, Requests
from zmq_offload.device.machine import Machines
from zmq_offload.device.offload import Mode, Statistics
from zmq_offload.device.remote import InferenceClient, InFlight, RemoteModule
from zmq_offload.device.turns import Turns
from zmq_offload.errors import (
    Cancelled,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OffloadError,
    PermissionDenied,
    Unavailable,
)
from zmq_offload.protocol.messages import NO_HOLDER
from zmq_offload.protocol.payload import Array
from zmq_offload.runtime.tvm_library import tvm_ffi

log = logging.getLogger("zmq_offload")

AUTO = "auto"
"""The `split` that leaves the choice to the controller."""

_After: TypeAlias = Literal["raise", "another split", "here"]
"""What follows a failed attempt."""

_clock = time.monotonic


class _Attempt(NamedTuple):
    """One way in which an item is tried. `auto`: this device computes it if workers fail."""

    controller: Controller
    chosen: Chosen
    item: Item
    auto: bool


class Options(NamedTuple):
    """How a bundle is loaded. `split`: the name of the only split to use, or `AUTO`."""

    timeout: float | None = None
    mode: Mode = "always"
    split: str = AUTO
    objective: Objective = "latency"


class Adaptive:
    """Runs items of one bundle, for any number of threads, and decides for each how.

    Errors of requests are in `in_flight`, as for any library.
    """

    def __init__(
        self,
        manifest: Manifest,
        library: tvm_ffi.Module,
        client: InferenceClient,
        in_flight: InFlight,
        turns: Turns,
        options: Options,
    ) -> None:
        timeout, mode, split, objective = options
        self._splits = usable_splits(manifest, split)
        self._objective = objective
        self.client, self._in_flight, self._local = client, in_flight, manifest.local
        self._requests = Requests(client, manifest.offloaded, turns)
        functions = {r.symbol: RemoteModule(r, self._requests, timeout, in_flight) for r in manifest.offloaded}
        self._machines: Machines | None = Machines(library, manifest.inputs, functions)
        self._counts = {"offloaded": 0, "local": 0, "fell_back": 0, "failed": 0}
        self._used = [0] * len(self._splits)
        self.forget()
        self.set_mode(mode)

    def forget(self) -> None:
        """After a fork: a thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._requests.forget()

    def close(self) -> None:
        """Drop the virtual machines. Items that run can finish."""
        self._machines = None

    def set_mode(self, mode: Mode) -> None:
        """Change the mode, and forget what was measured. Raises InvalidArgument for an unknown mode, and
        FailedPrecondition if the mode needs the whole model and the bundle lacks it."""
        if mode not in get_args(Mode):
            raise InvalidArgument(f"offload {mode!r} is not one of {', '.join(map(repr, get_args(Mode)))}")
        if mode != "always" and not self._local:
            raise FailedPrecondition(
                f"offload {mode!r} needs the whole model in the device bundle; compile it with --with-fallback"
            )
        with self._lock:
            self.mode = mode
            facts = [facts_of(split) for split in self._splits]
            self._controller = Controller(facts, self._objective, local=None if mode == "auto" else False)
            self._absent = Absent(len(self._splits))
            self._in_use: int | None = None

    def statistics(self) -> Statistics:
        with self._lock:
            here = self.mode == "never" or self._in_use == HERE
            used = self._splits if self._in_use in (None, HERE) else [self._splits[self._in_use]]
            counts = self._counts
            return Statistics(
                counts["offloaded"],
                counts["local"],
                counts["fell_back"],
                counts["failed"],
                ways={split.region.model: "local" if here else "remote" for split in used},
                splits={split.name: count for split, count in zip(self._splits, self._used, strict=True)},
                choice=None if self.mode == "never" else self._controller.explain(_clock()),
            )

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """The results of the whole model for arrays that fit its inputs."""
        machines = self._machines
        if machines is None:
            raise FailedPrecondition("the model is closed")
        if self.mode == "never":
            return self._run_here(machines, arrays, "local", None)
        tried: set[int] = set()
        while True:
            attempt = self._choose(tried)
            if attempt.chosen.split == HERE:
                return self._run_here(machines, arrays, "local", attempt)
            self._requests.current.item = attempt.item
            try:
                results = machines.run(arrays, self._splits[attempt.chosen.split].entry)
            except BaseException:
                after = self._failed(attempt, tried)
                if after == "raise":
                    raise
                self._in_flight.error = None
            else:
                self._took(attempt)
                return results
            if after == "here":
                return self._run_here(machines, arrays, "fell_back", attempt)

    def _choose(self, tried: set[int]) -> _Attempt:
        """How to run an item for which the splits `tried` were refused."""
        now = _clock()
        with self._lock:
            controller, auto = self._controller, self.mode == "auto"
            chosen = controller.choose(now)
            if (tried or self._absent.splits) and chosen.split != HERE:
                instead = self._absent.instead(chosen.split, tried, now)
                if instead not in (None, chosen.split):
                    controller.abandoned(chosen)
                    chosen = chosen._replace(split=instead, explores=False)
        return _Attempt(controller, chosen, Item(chosen.patience if auto else None), auto)

    def _took(self, attempt: _Attempt) -> None:
        """Workers served an item, and its run has ended."""
        split, now = attempt.chosen.split, _clock()
        with self._lock:
            attempt.controller.took(attempt.chosen, attempt.item.sample(now), now)
            self._counts["offloaded"] += 1
            self._used[split] += 1
            back = bool(self._absent.splits) and self._absent.served(split)
            changed = self._note(attempt, now)
        if back:
            log.info("model %r is served again", self._splits[split].region.model)
        if changed is not None:
            log.info("%s", changed)

    def _note(self, attempt: _Attempt, now: float) -> str | None:
        """An item was run as it was chosen. Returns what the log says if that is another way than before. The caller
        holds the lock."""
        chosen, before = attempt.chosen, self._in_use
        if chosen.split == before or chosen.explores or attempt.controller is not self._controller:
            return None
        self._in_use = chosen.split
        names = [*(f"split {split.name!r}" for split in self._splits), "the whole model on this device"]
        began = "" if before is None else f" in place of {names[before]}"
        return f"{names[chosen.split]} is used{began}: {attempt.controller.explain(now).why}"

    def _failed(self, attempt: _Attempt, tried: set[int]) -> _After:
        """An attempt ended in an error; adds its split to `tried` if its model was refused. Returns what follows."""
        error = self._in_flight.error
        self._in_flight.cancel()
        controller, chosen, item, auto = attempt
        new = elsewhere = False
        with self._lock:
            now = _clock()
            if not isinstance(error, OffloadError) or isinstance(error, Cancelled):
                controller.abandoned(chosen)
                return "raise"
            if is_refusal(error):
                controller.abandoned(chosen)
                new = self._absent.refused(chosen.split, now)
                tried.add(chosen.split)
                elsewhere = self._absent.instead(chosen.split, tried, now) is not None
            else:
                controller.missed(chosen, item.waited(), now)
            if not auto and not elsewhere:
                self._counts["failed"] += 1
        if new:
            split = self._splits[chosen.split]
            log.warning("split %r is left out, because its model cannot be used: %s", split.name, error)
        if elsewhere:
            return "another split"
        return "here" if auto else "raise"

    def _run_here(
        self,
        machines: Machines,
        arrays: Sequence[Array],
        how: Literal["local", "fell_back"],
        attempt: _Attempt | None,
    ) -> list[Array]:
        """The results of the whole model on this device: by choice, or after an attempt that workers failed."""
        began = _clock()
        try:
            results = machines.run(arrays, self._local)
        except BaseException as error:
            with self._lock:
                if attempt is not None and how == "local":
                    attempt.controller.abandoned(attempt.chosen)
                self._counts["failed"] += isinstance(error, Exception)
            raise
        now, changed = _clock(), None
        with self._lock:
            if attempt is not None:
                attempt.controller.ran_here(attempt.chosen, now - began, now)
                changed = self._note(attempt, now) if how == "local" else None
            self._counts[how] += 1
        if changed is not None:
            log.info("%s", changed)
        return results


def is_refusal(error: OffloadError) -> bool:
    """Whether an error says that nobody serves the model to this device, and not that a worker or a link failed."""
    if isinstance(error, Unavailable):
        return error.message.startswith(NO_HOLDER)
    return isinstance(error, (NotFound, FailedPrecondition, PermissionDenied))


def usable_splits(manifest: Manifest, split: str) -> Sequence[BundleSplit]:
    """The splits of a bundle that `load(split=...)` means. Raises InvalidArgument for a name that it does not have."""
    if split == AUTO:
        return manifest.splits
    names = [one.name for one in manifest.splits]
    if split not in names:
        known = ", ".join(map(repr, names)) or "one cut only, and no splits"
        raise InvalidArgument(f"split {split!r} is not in the bundle; it has {known}{did_you_mean(str(split), names)}")
    return [one for one in manifest.splits if one.name == split]


def facts_of(split: BundleSplit) -> SplitFacts:
    """What the controller knows of a split before it ran."""
    sent, received = (sum(spec.nbytes for spec in specs) for specs in (split.region.inputs, split.region.outputs))
    device, server = (split.predicted.get(stage) for stage in ("device", "server"))
    return SplitFacts(split.name, sent, received, device, server)
