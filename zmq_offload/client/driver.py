"""Who drives a synchronous client's socket.

One thread at a time drives: sends, receives and keeps time for all. A thread that waits for an answer does so itself,
so that what it waits for passes through no other thread. While nobody waits but something is outstanding, the pump
does, a background thread that is started when first needed and makes way for any thread that waits.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from typing import Any

import zmq

from zmq_offload.client.calls import Call, Submitted
from zmq_offload.client.connection import Connection
from zmq_offload.client.session import Action, Fail, Reconnect, Send
from zmq_offload.common.lifetime import made_before_fork
from zmq_offload.errors import Cancelled, Internal, InvalidArgument, Unavailable
from zmq_offload.net import transport

log = logging.getLogger("zmq_offload")

_GRACE = 0.002
"""Seconds that the pump leaves the socket alone after a thread that waited for an answer has got it: it will often
submit more and wait again, and handing the socket to and fro costs more than a small request."""

_MAKE_WAY = 0.05
"""Seconds that the pump gets to make way; it only needs them where a third thread was faster."""

_LEAVE = 1.0
"""Seconds that the end of the interpreter waits for a thread that drives; a future's callback may keep it."""


class Driver:
    """Safe to share between threads; makes the connection's calls and closes it. A `lifetime.Resource`.

    Raises Unavailable where the system has no files to give.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._session = connection.session
        self.forgotten = False
        self._lock = threading.Lock()  # guards what follows, and the session
        self._calls: dict[int, Call[Any]] = {}
        self._outbox: deque[Action] = deque()
        self._closed = False
        self._leading = False  # a thread that waits for an answer drives
        self._led_at = -math.inf  # when one last did
        self._followers = 0  # threads that wait while another drives
        self._pumping = False  # the pump drives
        self._make_way = False  # and shall not
        self._idle = True  # the pump sleeps until it is notified
        self._woken = False
        self._work = threading.Condition(self._lock)  # where the pump waits
        self._socket = threading.Lock()  # its holder drives
        self._driving: int | None = None  # the holder's thread
        try:
            self._wake = transport.Wake()
        except OSError as error:
            raise Unavailable(f"a client cannot be made: {error.strerror}") from None
        # What to poll: the connection's socket, and the wake.
        self._sources: list[tuple[Any, int]] = [(source, transport.POLLIN) for source in (None, self._wake.fileno())]
        self._pump: threading.Thread | None = None
        self._pump_ended = threading.Event()

    # --- the face -------------------------------------------------------------------------------------------

    def begin(self, call: Call[Any], start: Callable[..., tuple[int, list[Action]]], *args: Any) -> None:
        """Number a call and note what is to send; `start` is what begins it in the session. `run` or `send` next."""
        if self.forgotten:
            raise made_before_fork("client")
        with self._lock:
            if self._closed:
                raise Cancelled("the client is closed")
            call.number, actions = start(*args, now=time.monotonic())
            self._calls[call.number] = call
            self._outbox.extend(actions)

    def run(self, call: Call[Any]) -> None:
        """Until a call is done; it is taken back if its caller is interrupted."""
        try:
            self.wait(call.is_done, call.wait, None)
            if not call.is_done():
                call.wait()  # the client is being closed, which takes it back
        except BaseException:
            self.cancel(call.number)
            call.wait(1.0)  # for the memory of its inputs
            raise

    def send(self) -> None:
        """Have what is noted sent. Raises Unavailable if no thread can be started that waits for the answer."""
        if not self._socket.acquire(False):
            self._delegate()
            return
        try:
            self._drive(None)
        finally:
            self._socket.release()
        if self._idle:
            with self._lock:
                self._watch()

    def wait(self, done: Callable[[], bool], follow: Callable[[float | None], Any], until: float | None) -> None:
        """Until `done`, or the time `until`: drive if nobody else must, or else let who does and `follow`."""
        if not self._lead():
            self._follow(follow, until)
            return
        try:
            self._drive(done, until)
        finally:
            self._socket.release()
            with self._lock, contextlib.suppress(Unavailable):  # then nobody follows, and `send` starts it or fails
                self._leading, self._led_at = False, time.monotonic()
                self._watch()

    def cancel(self, number: int) -> None:
        """Take a call back, if it is not done."""
        if self.forgotten:
            return
        with self._lock:
            self._outbox.extend(self._session.cancel(number))
        with contextlib.suppress(Unavailable):  # it is taken back when the next call is made
            self._delegate()

    def refuse_callback(self, what: str) -> None:
        """A future's callback runs in the thread that drives, which cannot wait for itself."""
        if self._driving == threading.get_ident():
            raise InvalidArgument(f"{what} inside a future's callback would wait for itself for ever; use submit there")

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def outstanding(self) -> int:
        return len(self._calls)

    def close(self) -> None:
        """Take back what is outstanding and disconnect."""
        if self.forgotten or not self._begin_end():
            return
        if self._pump is not None and self._pump.ident != threading.get_ident():
            self._pump_ended.wait()  # `join` would leave an entry in `threading` for the thread that releases
        with self._socket:
            self._end()

    def release(self) -> None:
        """As `close`, when all that is outstanding has ended: somebody may hold a future still."""
        with contextlib.suppress(Unavailable):
            self._delegate()  # nobody may be driving
        futures.wait([call.future for call in list(self._calls.values()) if isinstance(call, Submitted)])
        self.close()

    def leave(self) -> None:
        """As `close`, without waiting for long. What cannot be closed then is left to the system, and so is what daemon
        threads wait for: they would print tracebacks."""
        if self.forgotten or self._leading or self._followers or not self._begin_end():
            return
        if self._socket.acquire(timeout=_LEAVE):
            try:
                self._end()
            finally:
                self._socket.release()

    def forget(self) -> None:
        """In a forked child. No other thread of the parent is here, and some may have held a lock."""
        self.forgotten = self._closed = True  # the latter for a callback that forks: this thread drives
        self._lock = threading.Lock()
        self._driving = None
        calls = list(self._calls.values())
        self._calls.clear()
        self._outbox.clear()
        self._connection.forget()
        self._wake.close()
        for call in calls:
            call.forget()

    def _begin_end(self) -> bool:
        """Have all threads let go; False if that was done before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            self._outbox.extend(self._session.close())
            self._work.notify_all()
        self._wake.set()
        return True

    def _end(self) -> None:
        """Needs `_socket`."""
        self._drive(None)
        self._connection.close()
        self._wake.close()

    # --- who drives -----------------------------------------------------------------------------------------

    def _lead(self) -> bool:
        """Take the socket, if nobody has it but the pump."""
        if self._socket.acquire(False):
            self._leading = True
            return True
        with self._lock:
            if not self._pumping or self._make_way:
                return False
            self._make_way = True
        self._wake.set()
        led = self._socket.acquire(timeout=_MAKE_WAY)
        with self._lock:
            self._make_way = False
            self._leading |= led
        return led

    def _follow(self, follow: Callable[[float | None], Any], until: float | None) -> None:
        with self._lock:
            self._followers += 1
        try:
            self._delegate()
            with contextlib.suppress(futures.TimeoutError, futures.CancelledError):
                follow(None if until is None else max(0.0, until - time.monotonic()))
        finally:
            with self._lock:
                self._followers -= 1

    def _delegate(self) -> None:
        """Let whoever drives, or the pump, take up what is new."""
        with self._lock:
            if self._closed:
                return
            self._watch()
            self._work.notify()
            woken, self._woken = self._woken, True
        if not woken:
            self._wake.set()

    def _watch(self) -> None:
        """See to it that the pump is up if it may be needed. Needs `_lock`. Raises Unavailable if it cannot start."""
        if self._closed or not (self._calls or self._outbox):
            return
        if self._pump is None:
            pump = threading.Thread(target=self._run_pump, name="zmq-offload-client", daemon=True)
            try:
                pump.start()
            except RuntimeError as error:
                raise Unavailable(f"a client cannot start a thread: {error}") from None
            self._pump = pump
        if self._idle or self._outbox or self._followers:
            self._idle = False
            self._work.notify()

    def _run_pump(self) -> None:
        try:
            self._pump_forever()
        finally:
            self._pump_ended.set()

    def _pump_forever(self) -> None:
        while True:
            with self._work:
                while not self._closed and (wait := self._pause()) != 0:
                    self._idle = wait is None
                    self._work.wait(wait)
                self._idle = False
                if self._closed:
                    return
            # A fault fails the calls that it met (see `_drive`); those to come still need a pump. So does whoever ends
            # a thread from a future's callback, by SystemExit.
            with self._socket, contextlib.suppress(BaseException):
                self._pumping = True
                try:
                    self._drive(lambda: self._make_way or not (self._calls or self._outbox))
                finally:
                    self._pumping = False

    def _pause(self) -> float | None:
        """How long the pump leaves the socket alone: None until something is outstanding, 0 not at all."""
        if self._outbox:
            return 0
        if not self._calls:
            return None
        if self._leading or self._make_way:
            return _GRACE
        return 0 if self._followers else max(0.0, self._led_at + _GRACE - time.monotonic())

    # --- driving --------------------------------------------------------------------------------------------

    def _drive(self, enough: Callable[[], bool] | None, until: float | None = None) -> None:
        """Send, receive and keep time until `enough`, the time `until`, or the client is closed; without `enough`, send
        only. Needs `_socket`."""
        self._driving = threading.get_ident()
        try:
            if enough is None:
                self._perform()
            else:
                self._drive_until(enough, until)
        except Exception as error:
            self._break(error)
        finally:
            self._driving = None

    def _break(self, error: Exception) -> None:
        """Driving failed: say, no file descriptor is left for a new connection. All that is outstanding fails, since
        nobody may wait for ever; the next call connects again."""
        failure = self._connection.failure
        if isinstance(failure(error), Internal):
            log.exception("the client failed; so do its %d calls", len(self._calls))
        else:
            log.warning("%s; %d calls fail", failure(error).message, len(self._calls))
        self._connection.reset()
        with self._lock:
            self._session.close()
            self._outbox.clear()
            calls = list(self._calls.values())
            self._calls.clear()
        leaving: BaseException | None = None
        for call in calls:
            try:
                call.end(Fail(call.number, failure(error)))
            except BaseException as end:  # noqa: PERF203  (a callback ends its thread, but not the other calls)
                leaving = end
        if leaving is not None:
            raise leaving

    def _drive_until(self, enough: Callable[[], bool], until: float | None) -> None:
        session, connection, outbox, lock = self._session, self._connection, self._outbox, self._lock
        while True:
            if outbox:
                self._perform()
            if enough() or self._closed:
                return
            if not connection.is_open:
                connection.reopen()
            socket = connection.socket
            if socket is not self._sources[0][0]:
                self._sources[0] = socket, transport.POLLIN
            with lock:
                deadline = session.next_deadline()
            now = time.monotonic()
            if until is not None:
                if now >= until:
                    return
                deadline = until if deadline is None else min(deadline, until)
            wait = -1 if deadline is None else max(0, math.ceil((deadline - now) * 1000))
            ready = zmq.zmq_poll(self._sources, wait)
            now = time.monotonic()
            for source, _ in ready:
                if source is socket:
                    self._take_in(now)
                else:
                    with lock:
                        self._wake.clear()
                        self._woken = False
            if deadline is not None and deadline <= now:
                self._keep_time(now)

    def _take_in(self, now: float) -> None:
        """Tell the session what came in. No more than calls are outstanding: to look for what comes after the last
        answer would be in vain."""
        messages = self._connection.receive(len(self._calls) or 1)
        with self._lock:
            for message, payload in messages:
                actions = self._session.received(message, payload, now)
                self._outbox.extend(actions)
                if actions and type(actions[0]) is Reconnect:
                    break  # what a broker that is left said besides is void

    def _keep_time(self, now: float) -> None:
        with self._lock:
            deadline = self._session.next_deadline()
            if deadline is not None and deadline <= now:
                if (why := self._connection.refusal()) is not None:
                    self._outbox.extend(self._session.refused(why, now))
                self._outbox.extend(self._session.tick(now))

    def _perform(self) -> None:
        """Do what the session wants done. Needs `_socket`; nobody else takes from the outbox."""
        connection, outbox = self._connection, self._outbox
        while outbox:
            action = outbox.popleft()
            if isinstance(action, Send):
                if not connection.is_open:
                    connection.reopen()
                connection.send(action)
            elif isinstance(action, Reconnect):
                connection.reconnect(action.endpoint)
            else:
                number = action.id
                lent = connection.still_lent(number)
                if lent:
                    connection.regain(lent)
                    with self._lock:
                        outbox.extend(self._session.reconnected(time.monotonic()))
                call = self._calls.pop(number, None)
                if call is not None:
                    call.end(action)
