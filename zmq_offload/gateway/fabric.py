"""The gateway's client of the broker: the fabric as the protocols see it."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence

from zmq_offload.client.aiocalls import Calls
from zmq_offload.client.connection import Connection
from zmq_offload.client.gatewaylink import GatewayLink
from zmq_offload.client.link import Watched, answer_of, result_of
from zmq_offload.client.session import Complete, Fail, RetryPolicy
from zmq_offload.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    OffloadError,
    PermissionDenied,
    ProtocolError,
    Status,
    Unauthenticated,
    Unavailable,
    one_line,
)
from zmq_offload.gateway.access.decisions import ANYONE
from zmq_offload.gateway.calls import Call, Cancel, Ended, Outputs, check_allowed, tell
from zmq_offload.gateway.catalog import Catalog, Indexed, can_exist, catalog_of, unknown, unloaded
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.inquiry import Inquiry
from zmq_offload.gateway.statistics import Statistics
from zmq_offload.net.grants import Grant
from zmq_offload.net.handshake import clients_security
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.protocol import limits
from zmq_offload.protocol.packed import unpack

_QUERY_SECONDS = 3.0
"""The longest that a query for the models takes, if a request may: long enough to leave a silent broker for another."""

_NOBODY = (Status.NOT_FOUND, Status.UNAVAILABLE)
"""Codes of requests that no version was there for, or that end with the gateway."""

EVERYTHING = Grant("this gateway")
"""What the gateway itself may see."""

_MOST_SECONDS = limits.BUDGET_US / 1e6


def link_to(
    brokers: Sequence[str],
    policy: RetryPolicy | None,
    max_frame_bytes: int,
    key: str | os.PathLike[str] | None = None,
    broker_key: str | os.PathLike[str] | None = None,
    sharing: Sharing | None = None,
) -> Watched:
    """A connection of the running event loop to the brokers: libzmq's if there are keys, as it encrypts; else the
    cheaper one of the loop's own, which can share memory."""
    if clients_security(key, broker_key).has_keys:
        return Connection(brokers, policy, max_frame_bytes, key, broker_key, reclaims=False)
    return GatewayLink(brokers, policy, max_frame_bytes, sharing)


class BrokerFabric:
    """A `zmq_offload.gateway.calls.Fabric` of a broker's calls. Make it in its event loop.

    `timeout` is in seconds, for calls that have none. `untraced` is what the broker gets for calls without a trace.
    """

    def __init__(self, calls: Calls, timeout: float, control: ModelControl, untraced: bytes = b"") -> None:
        self.statistics = Statistics()
        self.stopping = False
        self.outstanding = 0
        """Requests that have not ended."""
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._untraced = untraced
        self._query_timeout = min(timeout, _QUERY_SECONDS)
        self._control = control
        self._inquiry = Inquiry()
        self._numbers = itertools.count(1)
        """Of callers that are not known: a canary gets its share of their requests, drawn one by one."""

    @property
    def catalog(self) -> Catalog | None:
        """The last list of models, however old."""
        return self._inquiry.catalog

    def close(self) -> None:
        """Disconnect. Outstanding requests end with Unavailable, and so do later ones."""
        self._calls.close()

    # --- requests -------------------------------------------------------------------------------------------

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        model, timeout = call.model, call.timeout
        if timeout is None:
            timeout = self._timeout
        try:
            check_allowed(model, grant)
            if model in self._control.closed:
                raise unloaded(model)
            if timeout <= 0:
                raise DeadlineExceeded("the deadline was over when the request arrived")
            if timeout > _MOST_SECONDS:
                timeout = _MOST_SECONDS
            run = _Run(self, call, ended)
            self.outstanding += 1
            try:
                run.number = self._calls.request(
                    run.ended,
                    model,
                    call.inputs,
                    call.version,
                    timeout,
                    call.priority,
                    call.trace or self._untraced,
                    call.label or None,
                    call.caller or (grant.name if grant is not ANYONE else str(next(self._numbers))),
                )
            except OffloadError:
                self.outstanding -= 1
                raise
        except OffloadError as error:
            ended(_own(error) if not isinstance(error, InvalidArgument) or can_exist(model) else unknown(model))
            return _nothing
        return run.cancel

    def over(self, run: _Run, action: Complete | Fail) -> Outputs | OffloadError:
        """Count a request that has ended and return what came of it."""
        self.outstanding -= 1
        call = run.call
        model, took = call.model, time.monotonic() - run.started
        outcome: Outputs | OffloadError
        try:
            outcome = _own(action.error) if isinstance(action, Fail) else _outputs_of(action, took, model)
        except Exception as error:  # for instance MemoryError; the caller must get it
            outcome = Internal(f"the reply cannot be read: {type(error).__name__}: {one_line(error)}")
        if isinstance(outcome, Outputs):
            rows = call.inputs.layout.rows
            self.statistics.count(model, outcome.version).succeeded(rows, outcome.timings, time.time())
        else:
            self._failed(call, took, outcome)
        return outcome

    def canceled(self, number: int) -> None:
        """Take a request back."""
        self.outstanding -= 1
        self._calls.cancel(number)

    def _failed(self, call: Call, took: float, error: OffloadError) -> None:
        """Count a failed request for the version that it was for. If the last list of models has none, ask for it."""

        def count(_: Catalog | OffloadError) -> None:
            if (served := self._served(call.model, call.version, call.label)) is not None:
                self.statistics.count(call.model, served).fail.add(took)

        if self._served(call.model, call.version, call.label) is not None or error.code in _NOBODY:
            count(error)
        else:
            self.models(EVERYTHING, count, call.model, call.version)

    def _served(self, model: str, version: int | None, label: str) -> int | None:
        """The version that a failed request was for, as far as the last list of models says."""
        for served in () if self._inquiry.catalog is None else self._inquiry.catalog.models:
            if served.name == model and served.is_meant(version, label):
                return served.version
        return None

    # --- models ---------------------------------------------------------------------------------------------

    def models(
        self,
        grant: Grant,
        ended: Callable[[Catalog | OffloadError], None],
        name: str | None = None,
        version: int | None = None,
    ) -> Cancel:
        def see(answer: Catalog | OffloadError) -> None:
            ended(answer.seen(grant.allows, self._control.closed) if isinstance(answer, Catalog) else answer)

        known = self._inquiry.known(name, version, self._loop.time())
        if known is not None:
            see(known)
            return _nothing
        number, ask = self._inquiry.wait(see)
        if ask:
            try:
                self._calls.query(self._listed, "models", self._query_timeout)
            except OffloadError as error:
                self._answered(_own(error))
                return _nothing
        return functools.partial(self._inquiry.leave, number)

    def _listed(self, action: Complete | Fail) -> None:
        answer: Catalog | OffloadError
        try:
            body = action.error if isinstance(action, Fail) else answer_of(action)
            answer = _own(body) if isinstance(body, OffloadError) else catalog_of(body).after(self._inquiry.catalog)
        except OffloadError as error:
            answer = _own(error)
        self._answered(answer)

    def _answered(self, answer: Catalog | OffloadError) -> None:
        for waiter in self._inquiry.answered(answer, self._loop.time()):
            tell(waiter, answer)

    def index(self, grant: Grant, ended: Callable[[list[Indexed] | OffloadError], None]) -> Cancel:
        return self.models(grant, lambda answer: ended(answer.indexed() if isinstance(answer, Catalog) else answer))

    # --- model control --------------------------------------------------------------------------------------

    def load(self, name: str, grant: Grant, ended: Callable[[OffloadError | None], None]) -> Cancel:
        return self._change(name, grant, self._control.load, ended)

    def unload(self, name: str, grant: Grant, ended: Callable[[OffloadError | None], None]) -> Cancel:
        return self._change(name, grant, self._control.unload, ended)

    def _change(
        self,
        name: str,
        grant: Grant,
        change: Callable[[str, Catalog], OffloadError | None],
        ended: Callable[[OffloadError | None], None],
    ) -> Cancel:
        def listed(catalog: Catalog | OffloadError) -> None:
            ended(change(name, catalog) if isinstance(catalog, Catalog) else catalog)

        if (refusal := self._control.refusal()) is not None:
            ended(refusal)
            return _nothing
        if not grant.allows(name):
            ended(PermissionDenied(f"{grant.name} is not for model {name!r}"))
            return _nothing
        return self.models(grant, listed, name)


class _Run:
    """A request under way."""

    __slots__ = ("_ended", "_fabric", "_over", "call", "number", "started")

    def __init__(self, fabric: BrokerFabric, call: Call, ended: Ended) -> None:
        self._fabric = fabric
        self._ended = ended
        self._over = False
        self.call = call
        self.number = 0
        self.started = time.monotonic()  # uvloop's clock counts milliseconds

    def ended(self, action: Complete | Fail) -> None:
        """The client of the broker calls this, unless the request is canceled before."""
        self._over = True
        tell(self._ended, self._fabric.over(self, action))

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self._fabric.canceled(self.number)


def _own(error: OffloadError) -> OffloadError:
    """The error of a request for its client. It is the gateway that a broker refuses, or that cancels its requests, and
    it is a worker or a broker whose answer cannot be read."""
    if isinstance(error, ProtocolError):
        return Internal(f"the answer cannot be read: {error.message}")
    if isinstance(error, Unauthenticated):
        return Unavailable(f"no broker lets this gateway in: {error.message}")
    if isinstance(error, Cancelled):
        return Unavailable("the gateway has stopped before the answer; send the request again")
    return error


def _outputs_of(done: Complete, total: float, model: str) -> Outputs | OffloadError:
    """The outputs of a Result, or the error if its frames cannot be read."""
    version, timings = result_of(done, total)
    try:
        return Outputs(unpack(done.payload), model, version, timings)
    except ProtocolError as error:
        return _own(error)


def _nothing() -> None:
    """Cancel a request that has ended already."""
