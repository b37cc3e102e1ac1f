"""One call of a region: a request to a worker, or the same computed on this device."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from zmq_offload.artifacts.manifest import OffloadedRegion
from zmq_offload.device.remote import InferenceClient, Reply, check_fits
from zmq_offload.device.runs import current
from zmq_offload.device.turns import Turns
from zmq_offload.errors import Cancelled, FailedPrecondition, InvalidArgument, OffloadError, ProtocolError
from zmq_offload.protocol.messages import NO_FITTING_VERSION
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest

if TYPE_CHECKING:
    from zmq_offload.client.options import SubmitOptions


class LocalSubgraph(Protocol):
    """A subgraph that runs on this device."""

    def run(self, arrays: Sequence[Array]) -> list[Array]: ...


class Owner(Protocol):
    """Whose call it is."""

    client: InferenceClient
    turns: Turns
    fallbacks: Mapping[str, LocalSubgraph]
    """By model."""

    def count(self, how: str) -> None:
        """A call ended: "offloaded", "local", "fell_back" or "failed"."""


@dataclass
class RegionRequest:
    """What a device's library asks for, and the options of the call."""

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


class Judge(Protocol):
    """Who decides about one call, and learns how it ended."""

    falls_back: bool
    """Whether this device computes the region if a worker fails the call."""

    @property
    def patience(self) -> float | None:
        """Seconds to wait for a worker. None: as long as the call's timeout."""

    def ended(self, error: BaseException | None, seconds: float, reply: Reply | None) -> None:
        """A call to a worker ended, with an error or with a reply."""

    def abandoned(self) -> None:
        """The call was canceled, or failed on this device."""

    def computed(self, as_decided: bool, seconds: float) -> None:
        """The call was computed on this device."""


class RegionCall:
    """One call of a region. With a `judge` that falls back, a call that a worker fails is computed on this device."""

    def __init__(self, owner: Owner, request: RegionRequest, remote: bool, judge: Judge | None) -> None:
        self._owner, self._request, self._remote, self._judge = owner, request, remote, judge
        self._timeout = request.timeout
        if remote and judge is not None and (patience := judge.patience) is not None:
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
        judge = self._judge
        try:
            with self._owner.turns.pause():
                reply = self._reply()
        except BaseException as error:
            falls_back = judge is not None and judge.falls_back
            lost = falls_back and isinstance(error, OffloadError) and not isinstance(error, Cancelled)
            if judge is not None:
                judge.ended(error, self._seconds(), None)
            if not lost:
                if not isinstance(error, Cancelled):
                    self._owner.count("failed")
                raise
        else:
            if judge is not None:
                judge.ended(None, self._seconds(), reply)
            self._owner.count("offloaded")
            return reply
        return self._compute("fell_back")

    @property
    def fails_with(self) -> Future[Any] | None:
        """The request whose failure is this call's. None if a failed request is computed on this device."""
        return self._sent if self._judge is None or not self._judge.falls_back else None

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
            raise explained(error, region, wanted.label) from None
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


def explained(error: BaseException, region: OffloadedRegion, label: str | None) -> BaseException:
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
