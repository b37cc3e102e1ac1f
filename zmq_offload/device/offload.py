"""Between the device's graph and the client: a region runs on a worker, or on this device by its fallback."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, cast, get_args

from zmq_offload.artifacts.manifest import OffloadedRegion
from zmq_offload.client.prepared import Prepared
from zmq_offload.client.sync import Client
from zmq_offload.device.choice import Choice, Decision
from zmq_offload.device.remote import InferenceClient, Reply, check_fits, fill
from zmq_offload.device.runs import current
from zmq_offload.device.turns import Turns
from zmq_offload.errors import Cancelled, FailedPrecondition, InvalidArgument, OffloadError, ProtocolError
from zmq_offload.protocol.messages import NO_FITTING_VERSION
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions, SubmitOptions

log = logging.getLogger("zmq_offload")

Mode: TypeAlias = Literal["always", "never", "auto"]


class Statistics(NamedTuple):
    """How often regions ran where, since the model was loaded. Canceled calls are not counted.

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
        For each model, where the next call runs: ``"remote"`` or ``"local"``.
    """

    offloaded: int
    local: int
    fell_back: int
    failed: int
    ways: dict[str, str]


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


class LocalSubgraph(Protocol):
    """A subgraph that runs on this device."""

    def run(self, arrays: Sequence[Array]) -> list[Array]: ...


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
            counts = self._counts | {"offloaded": self._counts["offloaded"] + self._direct.value()}
            return Statistics(**counts, ways=ways)

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Reply:
        """As `zmq_offload.Client.infer`, or the same computed on this device. Raises FailedPrecondition if the served
        version does not fit the bundle."""
        return self._call(_Request(self._regions[model], inputs, **options)).result()

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
            fill(region, into, call.infer(inputs))
        except BaseException as error:
            if not isinstance(error, Cancelled):
                self.count("failed")
            raise _explained(error, region, options.get("label")) from None
        finally:
            if held:
                turns.resume()
        self._direct.add()
        return True

    @property
    def submit(self) -> Callable[..., RegionCall]:
        """As `infer` without outputs, if the client has `submit`. A call to a worker begins at once. A call on this
        device is computed when its `result` is asked for."""
        if not hasattr(self.client, "submit"):
            raise AttributeError("the client has no submit")
        return self._submit

    def _submit(self, model: str, inputs: Mapping[str, Array], **options: Unpack[SubmitOptions]) -> RegionCall:
        call = self._call(_Request(self._regions[model], inputs, **options))
        call.send()
        return call

    def count(self, how: str) -> None:
        with self._lock:
            self._counts[how] += 1

    def _call(self, request: _Request) -> RegionCall:
        with self._lock:
            if self.mode != "auto":
                return RegionCall(self, request, self.mode == "always", None)
            judge = _Judge(self._lock, request.region.model, self._choices[request.region.model])
            decision = judge.decide()
            return RegionCall(self, request, decision.remote, judge)


@dataclass
class _Request:
    region: OffloadedRegion
    inputs: Mapping[str, Array]
    version: int | Latest | None = None
    label: str | None = None
    timeout: float | None = None
    outputs: Mapping[str, Array] | None = None

    def options(self, timeout: float | None) -> SubmitOptions:
        """The options of a call. Only a bundle with a label needs a client that knows labels."""
        options: SubmitOptions = {"version": self.version, "timeout": timeout}
        if self.label is not None:
            options["label"] = self.label
        return options


class RegionCall:
    """One call of a region. With a `judge`, a call that a worker fails is computed on this device."""

    def __init__(self, owner: Offload, request: _Request, remote: bool, judge: _Judge | None) -> None:
        self._owner, self._request, self._remote, self._judge = owner, request, remote, judge
        self._timeout = request.timeout
        if remote and judge is not None:
            patience = judge.decision.patience
            self._timeout = patience if request.timeout is None else min(request.timeout, patience)
        self._sent: Future[Reply] | None = None
        self._began = time.monotonic()
        self._ended: float | None = None

    def send(self) -> None:
        """Begin the request to a worker, if the client has `submit`."""
        submit = getattr(self._owner.client, "submit", None)
        if self._remote and submit is not None:
            wanted = self._request
            sent: Future[Reply] = submit(wanted.region.model, wanted.inputs, **wanted.options(self._timeout))
            sent.add_done_callback(self._note_time)
            self._sent = sent
            scope = current()
            if scope is not None:
                scope.add(sent)

    def result(self) -> Reply:
        """Wait for the reply, or compute it. To be called once."""
        if not self._remote:
            return self._compute("local")
        try:
            with self._owner.turns.pause():
                reply = self._reply()
        except BaseException as error:
            lost = self._judge is not None and isinstance(error, OffloadError) and not isinstance(error, Cancelled)
            if self._judge is not None:
                self._judge.ended(error, self._seconds())
            if not lost:
                if not isinstance(error, Cancelled):
                    self._owner.count("failed")
                raise
        else:
            if self._judge is not None:
                self._judge.ended(None, self._seconds())
            self._owner.count("offloaded")
            return reply
        return self._compute("fell_back")

    @property
    def fails_with(self) -> Future[Any] | None:
        """The request whose failure is this call's. None if a failed request is computed on this device."""
        return self._sent if self._judge is None else None

    def cancel(self) -> bool:
        """Cancel the request. The result is no longer wanted."""
        if self._judge is not None:
            self._judge.abandoned()
        return self._sent is not None and self._sent.cancel()

    def _reply(self) -> Reply:
        wanted = self._request
        region = wanted.region
        if self._sent is None and current() is not None:
            self.send()  # so that it can be canceled
        try:
            if self._sent is not None:
                reply: Reply = self._sent.result()
            else:
                reply = self._owner.client.infer(
                    region.model, wanted.inputs, **wanted.options(self._timeout), outputs=wanted.outputs
                )
                self._note_time()
        except CancelledError:
            raise Cancelled("the run was canceled") from None
        except OffloadError as error:
            raise _explained(error, region, wanted.label) from None
        check_fits(region, reply)
        return reply

    def _compute(self, how: str) -> Reply:
        region = self._request.region
        began = time.monotonic()
        try:
            fallback = self._owner.fallbacks.get(region.model)
            if fallback is None:
                raise FailedPrecondition("the model is closed")
            results = fallback.run([self._request.inputs[spec.name] for spec in region.inputs])
        except BaseException:
            if self._judge is not None and how == "local":
                self._judge.abandoned()
            self._owner.count("failed")
            raise
        if self._judge is not None:
            self._judge.computed(how == "local", time.monotonic() - began)
        self._owner.count(how)
        return {spec.name: result for spec, result in zip(region.outputs, results, strict=True)}

    def _note_time(self, _: object = None) -> None:
        self._ended = time.monotonic()

    def _seconds(self) -> float:
        return (self._ended or time.monotonic()) - self._began


class _Judge:
    """Takes the decision for one call, and reports to the region's choice how the call ended."""

    def __init__(self, lock: threading.Lock, model: str, choice: Choice) -> None:
        self._lock, self._model, self._choice = lock, model, choice

    def decide(self) -> Decision:
        """The caller holds the lock."""
        self.decision = self._choice.decide(time.monotonic())
        return self.decision

    def ended(self, error: BaseException | None, seconds: float) -> None:
        """A call to a worker ended, with an error or without."""
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
        """The call was computed on this device."""
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


def _explained(error: BaseException, region: OffloadedRegion, label: str | None) -> BaseException:
    """The error of a call, as the caller of a model sees it."""
    if isinstance(error, InvalidArgument) and not isinstance(error, ProtocolError):
        # The bundle's graph computes the inputs. If they are refused, the bundle was built for another version.
        return FailedPrecondition(f"the served version does not fit this device bundle: {error.message}")
    if isinstance(error, FailedPrecondition) and (
        label is not None or error.message.startswith(NO_FITTING_VERSION)
    ):  # the broker does not know which version would fit
        return FailedPrecondition(f"{error.message}; this device bundle was built for {_wants(region)}")
    return error


def _wants(region: OffloadedRegion) -> str:
    inputs, outputs = (", ".join(map(str, specs)) for specs in (region.inputs, region.outputs))
    return f"one that takes {inputs} and returns {outputs}"
