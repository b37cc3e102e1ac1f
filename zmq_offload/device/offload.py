"""Between the device's graph and the client: a region runs on a worker, or on this device by its fallback."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast, get_args

from zmq_offload.artifacts.manifest import OffloadedRegion
from zmq_offload.client.prepared import Prepared
from zmq_offload.client.results import Outputs
from zmq_offload.client.sync import Client
from zmq_offload.device.choice import Choice, Decision
from zmq_offload.device.controller import Explanation
from zmq_offload.device.regioncall import LocalSubgraph, RegionCall, RegionRequest, explained
from zmq_offload.device.remote import InferenceClient, Reply, fill
from zmq_offload.device.runs import current
from zmq_offload.device.turns import Turns
from zmq_offload.errors import Cancelled, FailedPrecondition, InvalidArgument, OffloadError
from zmq_offload.protocol.payload import Array

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions, SubmitOptions

log = logging.getLogger("zmq_offload")

Mode: TypeAlias = Literal["always", "never", "auto"]


class Statistics(NamedTuple):
    """How often regions ran where, since the model was loaded. Canceled calls are not counted.

    Of an adaptive bundle whole items are counted, and `splits` and `choice` are there.

    Attributes
    ----------
    offloaded : int
        Calls that workers computed.
    local : int
        Calls that this device computed by choice.
    fell_back : int
        Calls that this device computed because a worker failed or was too slow.
    failed : int
        Calls that ended in an error.
    ways : dict of str to str
        For each model, where the next call runs: ``"remote"`` or ``"local"``. Of an adaptive bundle: for the model of
        the split in use.
    splits : dict of str to int
        How many items workers computed by each split.
    choice : Explanation, optional
        What is in use, since when and why; what it was expected to take, and what it took.
    """

    offloaded: int
    local: int
    fell_back: int
    failed: int
    ways: dict[str, str]
    splits: Mapping[str, int] = {}
    choice: Explanation | None = None


class Tally:
    """A number that threads add to without a lock."""

    def __init__(self) -> None:
        count = itertools.count()
        self.add: Callable[[], object] = count.__next__
        """Add 1."""
        self._next, self._asked = count.__next__, 0

    def value(self) -> int:
        """The number. The caller holds a lock: to ask counts, too."""
        self._asked += 1
        return self._next() - (self._asked - 1)


class Offload:
    """An `InferenceClient` that decides for each call where its region runs. `fallbacks` are by model.

    Threads may share it. A thread that waits for a worker gives its turn to others.
    """

    def __init__(
        self,
        client: InferenceClient,
        regions: Sequence[OffloadedRegion],
        fallbacks: Mapping[str, LocalSubgraph],
        turns: Turns,
        mode: Mode = "always",
    ) -> None:
        self.client, self.fallbacks, self.turns = client, fallbacks, turns
        self._prepared: dict[str, Prepared] | None = {} if isinstance(client, Client) else None
        self._regions = {region.model: region for region in regions}
        self.forget()
        self._counts = {"offloaded": 0, "local": 0, "fell_back": 0, "failed": 0}
        self._direct = Tally()
        self.set_mode(mode)

    def forget(self) -> None:
        """After a fork: a thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def set_mode(self, mode: Mode) -> None:
        """Change the mode. Raises InvalidArgument for an unknown mode, and FailedPrecondition if the mode needs a
        fallback for each region and one is missing."""
        if mode not in get_args(Mode):
            raise InvalidArgument(f"offload {mode!r} is not one of {', '.join(map(repr, get_args(Mode)))}")
        missing = [model for model in self._regions if model not in self.fallbacks]
        if mode != "always" and missing:
            raise FailedPrecondition(
                f"offload {mode!r} needs a fallback of {', '.join(map(repr, missing))} in the device bundle; "
                "compile it with --with-fallback"
            )
        with self._lock:
            self.mode = mode
            self._choices = {model: Choice() for model in self._regions}

    def statistics(self) -> Statistics:
        with self._lock:
            fixed = {"always": "remote", "never": "local"}.get(self.mode)
            ways = {model: fixed or ("remote" if c.remote else "local") for model, c in self._choices.items()}
            counts = self._counts
            offloaded = counts["offloaded"] + self._direct.value()
            return Statistics(offloaded, counts["local"], counts["fell_back"], counts["failed"], ways)

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Reply:
        """As `zmq_offload.Client.infer`, or the same computed on this device. Raises FailedPrecondition if the served
        version does not fit the bundle."""
        return self._call(RegionRequest(self._regions[model], inputs, **options)).result()

    def direct(
        self, region: OffloadedRegion, inputs: Mapping[str, Array], into: Sequence[Array], options: SubmitOptions
    ) -> bool:
        """As `infer`, for a call that workers compute and that nothing judges or cancels, as are most. Fills the arrays
        `into`. Returns False, and does nothing, for other calls, and with a client that fills them better."""
        prepared = self._prepared
        if prepared is None or self.mode != "always" or current() is not None:
            return False
        turns = self.turns
        held = turns.leave()
        try:
            call = prepared.get(region.model)
            if call is None:
                call = prepared[region.model] = cast("Client", self.client).prepared(region.model, **options)
            fill(region, into, self.ask(call, inputs))
        except BaseException as error:
            if not isinstance(error, Cancelled):
                self.count("failed")
            raise explained(error, region, options.get("label")) from None
        finally:
            if held:
                turns.resume()
        self._direct.add()
        return True

    def ask(self, call: Prepared, inputs: Mapping[str, Array]) -> Outputs:
        """Make a prepared call, and wait for its reply."""
        return call.infer(inputs)

    @property
    def submit(self) -> Callable[..., RegionCall]:
        """As `infer` without outputs, if the client has `submit`. A call to a worker begins at once. A call on this
        device is computed when its `result` is asked for."""
        if not hasattr(self.client, "submit"):
            raise AttributeError("the client has no submit")
        return self._submit

    def _submit(self, model: str, inputs: Mapping[str, Array], **options: Unpack[SubmitOptions]) -> RegionCall:
        call = self._call(RegionRequest(self._regions[model], inputs, **options))
        call.send()
        return call

    def close(self) -> None:
        """Drop the fallbacks. Calls that run can finish."""
        self.fallbacks = {}

    def count(self, how: str) -> None:
        with self._lock:
            self._counts[how] += 1

    def _call(self, request: RegionRequest) -> RegionCall:
        with self._lock:
            if self.mode != "auto":
                return RegionCall(self, request, self.mode == "always", None)
            judge = _Judge(self._lock, request.region.model, self._choices[request.region.model])
            decision = judge.decide()
            return RegionCall(self, request, decision.remote, judge)


class _Judge:
    """Takes the decision for one call, and reports to the region's choice how the call ended."""

    falls_back = True

    def __init__(self, lock: threading.Lock, model: str, choice: Choice) -> None:
        self._lock, self._model, self._choice = lock, model, choice

    @property
    def patience(self) -> float:
        return self.decision.patience

    def decide(self) -> Decision:
        """The caller holds the lock."""
        self.decision = self._choice.decide(time.monotonic())
        return self.decision

    def ended(self, error: BaseException | None, seconds: float, reply: Reply | None) -> None:
        with self._lock:
            if error is None:
                changed = self._choice.took(self.decision, seconds, time.monotonic())
            elif isinstance(error, OffloadError) and not isinstance(error, Cancelled):
                changed = self._choice.missed(self.decision, seconds, time.monotonic())
            else:
                self._choice.abandoned(self.decision)
                changed = False
        self._log(changed, "" if error is None else f": {error}")

    def abandoned(self) -> None:
        with self._lock:
            self._choice.abandoned(self.decision)

    def computed(self, as_decided: bool, seconds: float) -> None:
        with self._lock:
            if as_decided:
                changed = self._choice.took(self.decision, seconds, time.monotonic())
            else:
                self._choice.fell_back(seconds)
                changed = False
        self._log(changed, "")

    def _log(self, changed: bool, why: str) -> None:
        if changed:
            where = "on workers" if self._choice.remote else "on this device"
            log.warning("model %r now runs %s%s", self._model, where, why)
