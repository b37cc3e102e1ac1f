"""Between the device's graph and the client: an offloaded part runs on a worker, or by the bundle's copy of it here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

from zmq_offload.artifacts.manifest import OffloadedRegion
from zmq_offload.device.choice import Choice, Decision
from zmq_offload.device.remote import InferenceClient
from zmq_offload.device.runs import current
from zmq_offload.device.turns import Turns
from zmq_offload.errors import Cancelled, FailedPrecondition, InvalidArgument, OffloadError, ProtocolError
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from zmq_offload.client.options import InferOptions, SubmitOptions

log = logging.getLogger("zmq_offload")

Mode: TypeAlias = Literal["always", "never", "auto"]


class Statistics(NamedTuple):
    """Runs of offloaded parts, each counted once: on a worker; here by choice; here because a worker failed or was too
    slow; and those that ended in an error. Those taken back are not counted. `ways`: for each model "remote" or
    "local", where the next call would go."""

    offloaded: int
    local: int
    fell_back: int
    failed: int
    ways: dict[str, str]


class LocalSubgraph(Protocol):
    """A subgraph on this machine."""

    def run(self, arrays: Sequence[Array]) -> list[Array]: ...


class Offload:
    """An `InferenceClient` that decides for each call. `fallbacks` are of the offloaded parts, by model.

    Safe to share between threads; a thread that waits for a worker lets others have its turn.
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
        self._regions = {region.model: region for region in regions}
        self.forget()
        self._counts = {"offloaded": 0, "local": 0, "fell_back": 0, "failed": 0}
        self.set_mode(mode)

    def forget(self) -> None:
        """After a fork: a thread that is not here may have held the lock."""
        self._lock = threading.Lock()

    def set_mode(self, mode: Mode) -> None:
        """Raises InvalidArgument for what is none, FailedPrecondition where it needs a copy of each part and one is not
        there."""
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
            return Statistics(**self._counts, ways=ways)

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Unpack[InferOptions]) -> Mapping[str, Array]:
        """As `zmq_offload.Client.infer`, or the same computed here. Raises FailedPrecondition if what is served does
        not fit the bundle."""
        return self._call(_Request(self._regions[model], inputs, **options)).result()

    @property
    def submit(self) -> Callable[..., RegionCall]:
        """As `infer` without outputs, if the client has it: what goes to a worker is begun; what is computed here is
        when its `result` is asked for."""
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
    timeout: float | None = None
    outputs: Mapping[str, Array] | None = None


class RegionCall:
    """One run of an offloaded region. With a `judge`, what a worker fails is computed here."""

    def __init__(self, owner: Offload, request: _Request, remote: bool, judge: _Judge | None) -> None:
        self._owner, self._request, self._remote, self._judge = owner, request, remote, judge
        self._timeout = request.timeout
        if remote and judge is not None:
            patience = judge.decision.patience
            self._timeout = patience if request.timeout is None else min(request.timeout, patience)
        self._sent: Future[Any] | None = None
        self._began = time.monotonic()
        self._ended: float | None = None

    def send(self) -> None:
        """Begin what a worker is to do, if the client can do that."""
        submit = getattr(self._owner.client, "submit", None)
        if self._remote and submit is not None:
            wanted = self._request
            sent: Future[Any] = submit(
                wanted.region.model, wanted.inputs, version=wanted.version, timeout=self._timeout
            )
            sent.add_done_callback(self._note_time)
            self._sent = sent
            scope = current()
            if scope is not None:
                scope.holds(sent)

    def result(self) -> Mapping[str, Array]:
        """Once; waits for it, or computes it."""
        if not self._remote:
            return self._here("local")
        try:
            with self._owner.turns.pause():
                answer = self._answer()
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
            return answer
        return self._here("fell_back")

    @property
    def fails_with(self) -> Future[Any] | None:
        """The request whose failure is this one's; None where that is computed here instead."""
        return self._sent if self._judge is None else None

    def cancel(self) -> bool:
        """Take back what was sent. Its result is not wanted any more."""
        if self._judge is not None:
            self._judge.came_to_nothing()
        return self._sent is not None and self._sent.cancel()

    def _answer(self) -> Mapping[str, Array]:
        wanted = self._request
        region = wanted.region
        if self._sent is None and current() is not None:
            self.send()  # so that it can be taken back
        try:
            if self._sent is not None:
                answer: Mapping[str, Array] = self._sent.result()
            else:
                answer = self._owner.client.infer(
                    region.model, wanted.inputs, version=wanted.version, timeout=self._timeout, outputs=wanted.outputs
                )
                self._note_time()
        except CancelledError:
            raise Cancelled("the frame was taken back") from None
        except ProtocolError:
            raise
        except InvalidArgument as error:
            # The inputs are what the bundle's graph computes: if they are refused, it was built for another version.
            raise FailedPrecondition(f"what is served does not fit this device bundle: {error.message}") from None
        except FailedPrecondition as error:
            if error.message.startswith("no version of model"):  # the broker does not know what would fit
                raise FailedPrecondition(
                    f"{error.message}; this device bundle was built for {_wants(region)}"
                ) from None
            raise
        _check_fits(region, answer)
        return answer

    def _here(self, how: str) -> Mapping[str, Array]:
        region = self._request.region
        began = time.monotonic()
        try:
            fallback = self._owner.fallbacks.get(region.model)
            if fallback is None:
                raise FailedPrecondition("the model is closed")
            results = fallback.run([self._request.inputs[spec.name] for spec in region.inputs])
        except BaseException:
            if self._judge is not None and how == "local":
                self._judge.came_to_nothing()
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
    """One call's dealings with the choice of its region: the decision, and how it went."""

    def __init__(self, lock: threading.Lock, model: str, choice: Choice) -> None:
        self._lock, self._model, self._choice = lock, model, choice

    def decide(self) -> Decision:
        """Needs the lock."""
        self.decision = self._choice.decide(time.monotonic())
        return self.decision

    def ended(self, error: BaseException | None, seconds: float) -> None:
        """A call to a worker was answered, or not."""
        with self._lock:
            if error is None:
                changed = self._choice.took(self.decision, seconds, time.monotonic())
            elif isinstance(error, OffloadError) and not isinstance(error, Cancelled):
                changed = self._choice.missed(self.decision, seconds, time.monotonic())
            else:
                self._choice.came_to_nothing(self.decision)
                changed = False
        self._tell(changed, "" if error is None else f": {error}")

    def came_to_nothing(self) -> None:
        with self._lock:
            self._choice.came_to_nothing(self.decision)

    def computed(self, as_decided: bool, seconds: float) -> None:
        """It was computed here."""
        with self._lock:
            if as_decided:
                changed = self._choice.took(self.decision, seconds, time.monotonic())
            else:
                self._choice.fell_back(seconds)
                changed = False
        self._tell(changed, "")

    def _tell(self, changed: bool, why: str) -> None:
        if changed:
            where = "on workers" if self._choice.remote else "on this device"
            log.warning("model %r runs %s from now on%s", self._model, where, why)


def _wants(region: OffloadedRegion) -> str:
    inputs, outputs = (", ".join(map(str, specs)) for specs in (region.inputs, region.outputs))
    return f"one that takes {inputs} and returns {outputs}"


def _check_fits(region: OffloadedRegion, answer: Mapping[str, Array]) -> None:
    for spec in region.outputs:
        array: Any = answer.get(spec.name)
        if array is None or array.dtype != spec.dtype or not spec.fits(array.shape):
            got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
            version = getattr(answer, "version", None)
            served = f"model {region.model!r}" + (f" version {version}" if version else "")
            raise FailedPrecondition(
                f"what is served does not fit this device bundle: {served} answers output {spec.name!r} with {got}, "
                f"the device needs {spec}"
            )
