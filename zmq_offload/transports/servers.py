"""The calls of a `ServerClient`: each tries its servers, one after the other, until one answers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field

from zmq_offload.client.output_arrays import fill
from zmq_offload.client.results import Outputs, Timings
from zmq_offload.common.crew import Crew
from zmq_offload.common.lifetime import made_before_fork
from zmq_offload.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    NotFound,
    OffloadError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    one_line,
)
from zmq_offload.protocol.payload import Array
from zmq_offload.transports.calls import ServerFuture
from zmq_offload.transports.failover import Failover, Turn, leaves
from zmq_offload.transports.transport import Attempt, Cancellation, Reply, Request, Transport
from zmq_offload.transports.versions import Versions

OUTSTANDING = 256
"""The most submitted calls of one client. Each takes a thread while it waits for its server."""

_crew = Crew("zmq-offload-call")

_inherited: list[object] = []
"""Connections of the parent process. They cannot be closed in a child, and collecting them might."""


@dataclass(eq=False)
class ServerCall:
    """A call, from its arguments on. `version` None with a signature is the latest version that has it."""

    model: str
    version: int | None
    signature: bytes
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array] | None
    priority: int
    started: float
    until: float
    label: str = ""
    cancellation: Cancellation = field(default_factory=Cancellation)
    future: ServerFuture | None = None


class Servers:
    """The transports of a client, and the calls that are outstanding. A `lifetime.Resource`; threads share it."""

    def __init__(self, urls: Sequence[str], transports: Sequence[Transport]) -> None:
        self.urls = urls
        self.closed = False
        self.forgotten = False
        self._transports = transports
        self._versions = [Versions() for _ in transports]
        self._failover = Failover(len(transports))
        self._calls: set[ServerCall] = set()
        self._submitted = 0
        self._lock = threading.Lock()

    @property
    def outstanding(self) -> int:
        return len(self._calls)

    def run(self, call: ServerCall) -> Outputs:
        """Make a call in this thread."""
        self._begin(call)
        try:
            return self._outputs(call)
        finally:
            self._end(call)

    def submit(self, call: ServerCall) -> ServerFuture:
        """Make a call in a thread of the crew. Raises ResourceExhausted, or Unavailable if there is no thread."""
        future = call.future = ServerFuture(call.cancellation)
        self._begin(call)
        try:
            _crew.run(lambda: self._work(call, future))
        except RuntimeError as error:
            self._end(call)
            raise Unavailable(f"a client cannot start a thread: {error}") from None
        return future

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel what is outstanding and disconnect."""
        with self._lock:
            if self.closed or self.forgotten:
                return
            self.closed = True
            calls = list(self._calls)
        for call in calls:
            call.cancellation.cancel()
        for transport in self._transports:
            transport.close()

    def release(self) -> None:
        """Close as soon as all outstanding calls have ended: somebody may still hold a future."""
        with self._lock:
            waiting = [call.future for call in self._calls if call.future is not None]
        futures.wait(waiting)
        self.close()

    def leave(self) -> None:
        """Close when the interpreter ends."""
        self.close()

    def forget(self) -> None:
        """End all calls in a forked child. The parent's other threads are not here, and may have held a lock."""
        self.forgotten = True
        self._lock = threading.Lock()
        _inherited.append(self._transports)
        calls, self._calls = self._calls, set()
        for call in calls:
            if call.future is not None:
                call.future.forget()
        for transport in self._transports:
            transport.forget()

    # --- one call -------------------------------------------------------------------------------------------

    def _begin(self, call: ServerCall) -> None:
        if self.forgotten:
            raise made_before_fork("client")
        with self._lock:
            if self.closed:
                raise Cancelled("the client is closed")
            if call.future is not None:
                if self._submitted >= OUTSTANDING:
                    raise ResourceExhausted(f"{OUTSTANDING} submitted calls are outstanding; wait for one of them")
                self._submitted += 1
            self._calls.add(call)

    def _end(self, call: ServerCall) -> None:
        with self._lock:
            self._submitted -= call.future is not None
            self._calls.discard(call)

    def _work(self, call: ServerCall, future: ServerFuture) -> None:
        outcome: Outputs | BaseException
        try:
            outcome = self._outputs(call)
        except BaseException as error:  # the future's holder must get it
            outcome = error
        self._end(call)  # before the future is done, so that its holder can submit the next
        future.end(outcome)

    def _outputs(self, call: ServerCall) -> Outputs:
        reply = self._answered(call)
        timings = Timings(math.nan, math.nan, math.nan, time.monotonic() - call.started)
        outputs = Outputs(reply.outputs, call.model, reply.version or 0, timings)
        if call.outputs is not None:
            fill(outputs, call.outputs)
        return outputs

    def _answered(self, call: ServerCall) -> Reply:
        """Try the servers until one answers. Raises what the last one did."""
        failures: list[tuple[str, OffloadError]] = []
        tried: frozenset[int] = frozenset()
        while True:
            now = time.monotonic()
            with self._lock:
                turn = self._failover.turn(tried, call.until, now) if now < call.until else None
            if turn is None:
                raise _failure(failures, call, now)
            try:
                reply = self._asked(turn, call)
            except BaseException as error:
                found = self._noted(turn, call, error)
                if not leaves(found):
                    raise found from None
                failures.append((self.urls[turn.server], found))
                tried |= {turn.server}
            else:
                with self._lock:
                    self._failover.answered(turn)
                return reply

    def _noted(self, turn: Turn, call: ServerCall, error: BaseException) -> OffloadError:
        """Take note of how a turn failed, and return the call's error. Raises what is no error of a server."""
        canceled = call.cancellation.canceled
        with self._lock:
            if canceled or not isinstance(error, OffloadError):
                self._failover.stopped(turn)
            elif leaves(error):
                self._failover.failed(turn, time.monotonic())
            else:
                self._failover.answered(turn)
        if canceled:
            return Cancelled("the client was closed" if self.closed else "canceled by the caller")
        if isinstance(error, OffloadError):
            return error
        if not isinstance(error, Exception):
            raise error
        return Internal(f"the transport to {self.urls[turn.server]} failed: {type(error).__name__}: {one_line(error)}")

    def _asked(self, turn: Turn, call: ServerCall) -> Reply:
        """Make a call at one server."""
        transport, versions = self._transports[turn.server], self._versions[turn.server]
        attempt = Attempt(turn.until, turn.connect_until, call.cancellation, by_close=call.future is None)
        model, signature = call.model, call.signature
        attempt.seconds()
        if call.label:
            if not transport.ABILITIES.labels:
                raise Unimplemented(
                    f"{self.urls[turn.server]} takes no label {call.label!r} of a call; ask a broker (tcp://, ipc://), "
                    "or name a version"
                )
            request = Request(model, None, call.inputs, call.outputs, call.priority, call.label, signature)
            return transport.infer(request, attempt)
        if not signature:
            return transport.infer(Request(model, call.version, call.inputs, call.outputs, call.priority), attempt)
        known = versions.known(model, signature, time.monotonic())
        if known:
            version = versions.version(model, signature)
        else:
            version = versions.choose(model, signature, transport.served(model, attempt), time.monotonic())
        try:
            return transport.infer(Request(model, version, call.inputs, call.outputs, call.priority), attempt)
        except NotFound:
            versions.forget(model, signature)
            if not known:
                raise
        return self._asked(turn, call)  # the version was replaced since it was found


def _failure(failures: Sequence[tuple[str, OffloadError]], call: ServerCall, now: float) -> OffloadError:
    """The error of a call that no server answered."""
    if now >= call.until:
        why = "; ".join(f"{url}: {error.message}" for url, error in failures)
        return DeadlineExceeded(f"deadline exceeded after {now - call.started:.3f} s" + (f": {why}" if why else ""))
    if len(failures) == 1:
        return failures[0][1]
    return Unavailable("no server answered: " + "; ".join(f"{url}: {error.message}" for url, error in failures))
