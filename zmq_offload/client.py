"""The synchronous client: the session, its socket, and whichever thread drives them.

Whoever holds `_driver` drives the socket. A thread that calls `infer` while nobody drives does so itself, so that its
request passes through no other thread; in all other cases the pump, a background thread that is started when first
needed, drives for as long as anything is outstanding.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import zmq

from zmq_offload import transport
from zmq_offload.connection import (
    DEFAULT_TIMEOUT,
    Connection,
    answer_of,
    arrays,
    check_call,
    check_timeout,
    copy_into,
    outputs_of,
    size,
)
from zmq_offload.errors import Cancelled, Internal, InvalidArgument, OffloadError
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array, encode_tensors
from zmq_offload.results import Outputs
from zmq_offload.session import Action, Complete, Fail, Policy, Reconnect, Send

T = TypeVar("T")

log = logging.getLogger("zmq_offload")


class _Call(Future[T]):
    """A future whose `cancel` reaches the broker. `finish` makes its value of the message that completes it."""

    def __init__(self, client: Client, finish: Callable[[Complete, float], T | OffloadError]) -> None:
        super().__init__()
        self.number = 0
        self.started = time.monotonic()
        self._client = client
        self._finish = finish

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._client._cancel(self.number)
        return cancelled

    def end(self, action: Complete | Fail) -> None:
        if not self.set_running_or_notify_cancel():
            return
        value = action.error if isinstance(action, Fail) else self._finish(action, time.monotonic() - self.started)
        if isinstance(value, OffloadError):
            self.set_exception(value)
        else:
            self.set_result(value)


class Client:
    """Calls models through a broker; safe to share between threads, not between processes.

    `broker` is the endpoint of a broker's frontend, or several: while one does not answer, the next is tried, and what
    was outstanding is sent there. `timeout` (seconds) is for calls that give none: no call waits for ever.
    A frame of more than `max_frame_bytes` is not taken from the broker. `key` (this client's NAME.key_secret) and
    `broker_key` (the broker's NAME.key) encrypt and authenticate (docs/security.md); their defaults are in
    ZMQ_OFFLOAD_CLIENT_KEY and ZMQ_OFFLOAD_BROKER_KEY.
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_frame_bytes: int = limits.MESSAGE_BYTES,
        policy: Policy | None = None,
        key: str | None = None,
        broker_key: str | None = None,
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._connection = Connection(broker, policy or Policy(), max_frame_bytes, key, broker_key)
        self._session = self._connection.session
        self._lock = threading.Lock()  # guards the session, `_calls`, `_outbox`, `_closed`
        self._work = threading.Condition(self._lock)  # the pump waits here
        self._driver = threading.Lock()  # its holder drives the socket
        self._driving: int | None = None  # the holder's thread
        self._wake = transport.Wake()
        self._woken = False
        self._calls: dict[int, _Call[Any]] = {}
        self._outbox: deque[Action] = deque()
        self._pump: threading.Thread | None = None
        self._closed = False

    # --- the face -------------------------------------------------------------------------------------------

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        outputs: Mapping[str, Array] | None = None,
    ) -> Outputs:
        """Run `model` on named arrays and return its named outputs.

        `version` None is the highest that is served. `timeout` is in seconds. Requests of a higher `priority` (-100 to
        100) leave the broker's queue first. `outputs`: arrays that the results are put into (and that are returned),
        by name, of the model's shapes and datatypes. The input arrays must not change before this returns.

        Raises the errors of `zmq_offload.errors`; docs/errors.md says when each comes and what to do.
        """
        self._refuse_callback("infer")
        call = self._request(model, inputs, version, timeout, priority)
        self._wait(call)
        result = call.result()
        if outputs is not None:
            copy_into(result, outputs)
        return result

    def submit(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        timeout: float | None = None,
        priority: int = 0,
    ) -> Future[Outputs]:
        """As `infer`, but return a future at once. The input arrays must not change before it is done. Cancelling the
        future takes the request back, out of the broker's queue if it is still there."""
        call = self._request(model, inputs, version, timeout, priority)
        self._delegate()
        return call

    def models(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """What is served now: for each model and version its `name`, `version`, `inputs`, `outputs` (name, datatype,
        shape; -1 for any extent) and the number of `workers` that hold it."""
        return self._query("models", timeout)  # type: ignore[no-any-return]

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The broker's state: its workers, models, queues, and the requests served and failed (docs/operations.md)."""
        return self._query("status", timeout)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Take back what is outstanding (those calls raise Cancelled) and disconnect. Closing again does nothing."""
        self._refuse_callback("close")
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._outbox.extend(self._session.close())
            self._work.notify_all()
        self._wake.set()
        if self._pump is not None and self._pump is not threading.current_thread():
            self._pump.join()
        with self._driver:
            self._perform()
            self._connection.close()
            self._wake.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- calls ----------------------------------------------------------------------------------------------

    def _request(
        self, model: str, inputs: Mapping[str, Any], version: int | None, timeout: float | None, priority: int
    ) -> _Call[Outputs]:
        timeout = self._timeout if timeout is None else timeout
        wanted = check_call(model, timeout, version, priority)
        payload = encode_tensors(arrays(inputs))
        nbytes = size(payload)
        call: _Call[Outputs] = _Call(self, lambda done, total: outputs_of(done, model, total))
        return self._begin(
            call,
            lambda now: self._session.request(
                model, payload, nbytes, now, timeout=timeout, version=wanted, priority=priority
            ),
        )

    def _query(self, what: str, timeout: float | None) -> Any:
        self._refuse_callback(what)
        timeout = self._timeout if timeout is None else check_timeout(timeout)
        call: _Call[Any] = _Call(self, lambda done, total: answer_of(done))
        self._begin(call, lambda now: self._session.query(what, now, timeout=timeout))
        self._wait(call)
        return call.result()

    def _begin(self, call: _Call[T], start: Callable[[float], tuple[int, list[Action]]]) -> _Call[T]:
        with self._lock:
            if self._closed:
                raise Cancelled("the client is closed")
            call.number, actions = start(time.monotonic())
            self._calls[call.number] = call
            self._outbox.extend(actions)
        return call

    def _wait(self, call: _Call[Any]) -> None:
        """Until a call is done: drive if nobody does, else leave it to who does."""
        if not self._driver.acquire(blocking=False):
            self._delegate()
            return
        try:
            self._drive(call.done)
        finally:
            self._driver.release()
        with self._lock:
            others = bool(self._calls or self._outbox)
        if others:
            self._delegate()

    def _cancel(self, number: int) -> None:
        with self._lock:
            self._outbox.extend(self._session.cancel(number))
        self._delegate()

    def _refuse_callback(self, what: str) -> None:
        """A future's callback runs in the thread that drives, which cannot wait for itself."""
        if self._driving == threading.get_ident():
            raise InvalidArgument(f"{what} inside a future's callback would wait for itself for ever; use submit there")

    # --- driving --------------------------------------------------------------------------------------------

    def _delegate(self) -> None:
        """Let whoever drives, or the pump, take up what is new."""
        with self._lock:
            if self._closed:
                return
            if self._pump is None:
                self._pump = threading.Thread(target=self._pump_forever, name="zmq-offload-client", daemon=True)
                self._pump.start()
            self._work.notify()
            woken, self._woken = self._woken, True
        if not woken:
            self._wake.set()

    def _pump_forever(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._closed or self._calls or self._outbox)
                if self._closed:
                    return
            # A fault fails the calls that it met (see `_drive`); those to come still need a pump.
            with self._driver, contextlib.suppress(Exception):
                self._drive(lambda: not (self._calls or self._outbox))

    def _drive(self, enough: Callable[[], bool]) -> None:
        """Send, receive and keep time until `enough` or the client is closed. Needs `_driver`."""
        self._driving = threading.get_ident()
        try:
            self._drive_until(enough)
        except Exception as error:
            # Say, no file descriptor is left for a new connection. Nobody may wait for ever.
            self._break(error)
            raise
        finally:
            self._driving = None

    def _break(self, error: Exception) -> None:
        """Fail all that is outstanding."""
        log.exception("the client failed; so do its %d calls", len(self._calls))
        with self._lock:
            self._session.close()
            self._outbox.clear()
            calls = list(self._calls.values())
            self._calls.clear()
        for call in calls:
            call.end(Fail(call.number, Internal(f"the client failed: {type(error).__name__}: {error}")))

    def _drive_until(self, enough: Callable[[], bool]) -> None:
        session, connection = self._session, self._connection
        poller = zmq.Poller()
        poller.register(self._wake.fileno(), zmq.POLLIN)
        poller.register(connection.socket, zmq.POLLIN)
        socket = connection.socket
        while True:
            self._perform()
            if self._closed or enough():
                return
            if connection.socket is not socket:
                poller.unregister(socket)
                socket = connection.socket
                poller.register(socket, zmq.POLLIN)
            with self._lock:
                deadline = session.next_deadline()
            wait = None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1000))
            ready = dict(poller.poll(wait))
            if self._wake.fileno() in ready:
                with self._lock:
                    self._wake.clear()
                    self._woken = False
            while (message := connection.receive()) is not None:
                with self._lock:
                    actions = session.received(*message, time.monotonic())
                    self._outbox.extend(actions)
                if actions and isinstance(actions[0], Reconnect):
                    break  # what the broker that is left said besides is void
            with self._lock:
                now = time.monotonic()
                deadline = session.next_deadline()
                if deadline is not None and deadline <= now:
                    if (why := connection.refusal()) is not None:
                        self._outbox.extend(session.refused(why, now))
                    self._outbox.extend(session.tick(now))

    def _perform(self) -> None:
        """Do what the session wants done. Needs `_driver`, because of the socket."""
        while True:
            with self._lock:
                if not self._outbox:
                    return
                action = self._outbox.popleft()
                call = self._calls.pop(action.id, None) if isinstance(action, Complete | Fail) else None
            if isinstance(action, Send):
                self._connection.send(action)
            elif isinstance(action, Reconnect):
                self._connection.reconnect(action.endpoint)
            elif call is not None:
                call.end(action)
