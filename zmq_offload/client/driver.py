"""Which thread drives a synchronous client's socket.

One thread at a time sends, receives and keeps time for all (`exchange`). A thread that waits for a reply drives the
socket itself, so that its reply passes through no other thread. While calls are outstanding and nobody waits, the pump
drives: a background thread that makes way for every thread that waits. While nothing is outstanding, it looks after the
connection every few seconds. `lifecycle` has the states as tables.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

from zmq_offload.client.calls import Call, Submitted
from zmq_offload.client.exchange import Exchange
from zmq_offload.client.lifecycle import Life, Lifecycle, Turn
from zmq_offload.client.link import Polled
from zmq_offload.client.session import Action
from zmq_offload.common.lifetime import made_before_fork
from zmq_offload.errors import Cancelled, InvalidArgument, Unavailable
from zmq_offload.net import transport

_MAKE_WAY = 0.05
"""Seconds that the pump gets to make way. It only needs them if a third thread takes the socket first."""

_EVERY = 5.0
"""Seconds between two looks at a connection while nothing is outstanding, at most: brokers ask whether it is alive."""

_HELD = 16
"""Requests that are held for each other while a thread takes results that have come already: it comes again at once."""

_LEAVE = 1.0
"""Seconds that the end of the interpreter waits for a thread that drives; a future's callback may keep it."""


class Driver:
    """Makes the calls of a connection and closes it; safe to share between threads. A `lifetime.Resource`.

    Raises Unavailable if the system has no files left.
    """

    def __init__(self, connection: Polled) -> None:
        self.connection = connection
        self.session = connection.session
        self._lifecycle = Lifecycle()
        try:
            self._wake = transport.Wake()
        except OSError as error:
            raise Unavailable(f"cannot make a client: {error.strerror}") from None
        self._exchange = Exchange(connection, self._lifecycle, self._wake)
        self._calls, self._outbox = self._exchange.calls, self._exchange.outbox
        self._lock = self._exchange.lock
        self._work = threading.Condition(self._lock)  # where the pump waits
        self._socket = threading.RLock()  # its holder drives; it knows its holder, even after Ctrl-C
        self.taken = 0
        """Results in a row that were there when a thread asked for them."""
        self._held = False  # whether what is in the outbox waits for more
        self._pump: threading.Thread | None = None
        self._pump_ended = threading.Event()
        with contextlib.suppress(Unavailable):  # a call that needs it tries again
            self._start_pump()

    # --- calls ----------------------------------------------------------------------------------------------

    def begin(self, call: Call[Any], start: Callable[..., tuple[int, list[Action]]], *args: object) -> None:
        """Begin a call by the session's method `start`. Nothing is sent before `run` or `send`."""
        if self.forgotten:
            raise made_before_fork("client")
        with self._lock:
            if not self._lifecycle.is_open:
                raise Cancelled("the client is closed")
            now = self._lifecycle.submitted_at = time.monotonic()
            call.number, actions = start(*args, now=now)
            self._calls[call.number] = call
            self._outbox.extend(actions)

    def run(self, call: Call[Any]) -> None:
        """Wait until a call is done. If its caller is interrupted, the call is canceled."""
        try:
            self.wait(call.is_done, call.wait, None)
            if not call.is_done():
                call.wait()  # the client is being closed, which cancels the call
        except BaseException:
            self.cancel(call.number)
            call.wait(1.0)  # until the memory of its inputs is free
            raise

    def send(self) -> None:
        """Have the outbox sent. Raises Unavailable if no thread can be started to wait for the reply."""
        self._held = self.taken > 1 and len(self._outbox) < _HELD and self._exchange.driving is None
        if not self._held:
            if self._owns():  # in a future's callback
                self._delegate()
                return
            try:
                try:
                    if not self._socket.acquire(False):
                        self._delegate()
                        return
                    self._exchange.send()
                finally:
                    self._let_go()
            except BaseException:  # Ctrl-C may have come there
                self._let_go()
                raise
        if self._lifecycle.pump_sleeps:
            with self._lock:
                self._wake_pump()

    def wait(self, done: Callable[[], bool], follow: Callable[[float | None], object], until: float | None) -> None:
        """Wait for `done` or for the time `until`: as the leader if possible, else by `follow`."""
        self.taken = 0
        nested, leads = self._owns(), False
        try:
            try:
                leads = self._lead(until)
                if leads:
                    self._exchange.run(done, until)
            finally:
                if not nested:
                    self._resign()
        except BaseException:  # Ctrl-C may have come there
            if not nested:
                self._resign()
            raise
        if not leads:
            self._follow(follow, until)

    def cancel(self, number: int) -> None:
        """Cancel a call, unless it is done."""
        if self.forgotten:
            return
        with self._lock:
            self._outbox.extend(self.session.cancel(number))
        with contextlib.suppress(Unavailable):  # then the next call sends it
            self._delegate()

    def refuse_callback(self, method: str) -> None:
        """Raise InvalidArgument in a future's callback: it runs in the thread that drives, which cannot wait."""
        if self._exchange.driving == threading.get_ident():
            raise InvalidArgument(f"{method} in a future's callback would wait for itself forever; use submit there")

    @property
    def closed(self) -> bool:
        return not self._lifecycle.is_open

    @property
    def forgotten(self) -> bool:
        """Whether it belongs to the process that this one was forked from."""
        return self._lifecycle.life is Life.FORGOTTEN

    @property
    def outstanding(self) -> int:
        return len(self._calls)

    # --- the end --------------------------------------------------------------------------------------------

    def close(self, *, if_idle: bool = False) -> None:
        """Cancel what is outstanding and disconnect; with `if_idle`, only if nothing is outstanding."""
        if not self._begin_end(if_idle=if_idle):
            return
        if self._pump is not None and self._pump.ident != threading.get_ident():
            self._pump_ended.wait()  # `join` would leave an entry in `threading` for the thread that releases
        with self._socket:
            self._end()

    def retire(self) -> bool:
        """Close if nothing is outstanding. Whether it is closed."""
        self.close(if_idle=True)
        return self.closed

    def release(self) -> None:
        """Close as soon as all outstanding calls have ended: somebody may still hold a future."""
        with contextlib.suppress(Unavailable):
            self._delegate()  # nobody may be driving
        futures.wait([call.future for call in list(self._calls.values()) if isinstance(call, Submitted)])
        self.close()

    def leave(self) -> None:
        """Close without waiting for long, when the interpreter ends.

        If that is not possible, the system closes the socket. Calls that daemon threads wait for are not ended: those
        threads would print tracebacks.
        """
        if not (self._lifecycle.is_led or self._lifecycle.followers):
            self.cut_off()

    def cut_off(self) -> None:
        """Cancel what is outstanding and disconnect, without waiting for long."""
        if not self._begin_end():
            return
        if self._socket.acquire(timeout=_LEAVE):
            try:
                self._end()
            finally:
                self._socket.release()

    def forget(self) -> None:
        """End all calls in a forked child. The parent's other threads are not here, and may have held a lock."""
        self._lifecycle.live("fork")
        calls = self._exchange.forget()
        self._lock = self._exchange.lock
        self._work = threading.Condition(self._lock)
        self.connection.forget()
        self._wake.close()
        for call in calls:
            call.forget()

    def _begin_end(self, *, if_idle: bool = False) -> bool:
        """Make all threads stop driving. Returns False if that was done before, or must not be."""
        with self._lock:
            if not self._lifecycle.is_open or (if_idle and self._calls):
                return False
            self._lifecycle.live("close")
            self._outbox.extend(self.session.close())
            self._work.notify_all()
        self._wake.set()
        return True

    def _end(self) -> None:
        """Send the last messages and disconnect. Needs `_socket`."""
        self._exchange.send()
        self.connection.close()
        self._wake.close()

    # --- leader and followers -------------------------------------------------------------------------------

    def _lead(self, until: float | None) -> bool:
        """Become the leader, unless another thread leads. The pump is asked to make way, until the time `until`."""
        if self._owns():  # in a future's callback
            return False
        leads = False
        try:
            leads = self._socket.acquire(False)
            if not leads:
                with self._lock:
                    if self._lifecycle.turn is not Turn.PUMPED:
                        return False
                    self._lifecycle.step("ask")
                self._wake.set()
                left = _MAKE_WAY if until is None else max(0.0, min(_MAKE_WAY, until - time.monotonic()))
                leads = self._socket.acquire(timeout=left)
            with self._lock:
                self._lifecycle.step("lead" if leads else "withdraw")
        except BaseException:  # Ctrl-C; the pump must not wait for this thread
            with self._lock:
                if not (self._owns() and self._lifecycle.is_led):
                    self._lifecycle.step("withdraw")
            raise
        return leads

    def _owns(self) -> bool:
        """Whether this thread holds the socket. Ctrl-C may come before what `acquire` returned is stored."""
        return self._socket._is_owned()  # type: ignore[attr-defined,no-any-return]

    def _resign(self) -> None:
        """End the lead, if this thread has it. If this is interrupted, do it again."""
        if self._owns():
            with self._lock, contextlib.suppress(Unavailable):  # no pump starts; `send` tries again or raises
                if self._lifecycle.is_led:
                    self._lifecycle.leave(time.monotonic())
                self._wake_pump()
            self._socket.release()

    def _let_go(self) -> None:
        if self._owns():
            self._socket.release()

    def _follow(self, follow: Callable[[float | None], object], until: float | None) -> None:
        followers, thread = self._lifecycle.followers, threading.get_ident()
        try:
            followers.add(thread)
            self._delegate()
            with contextlib.suppress(futures.TimeoutError, futures.CancelledError):
                follow(None if until is None else max(0.0, until - time.monotonic()))
        finally:
            followers.discard(thread)

    def _delegate(self) -> None:
        """Make the thread that drives, or else the pump, look for new work."""
        with self._lock:
            if not self._lifecycle.is_open:
                return
            self._held = False
            self._wake_pump()
            self._work.notify()
            woken, self._exchange.woken = self._exchange.woken, True
        if not woken:
            self._wake.set()

    # --- the pump -------------------------------------------------------------------------------------------

    def _wake_pump(self) -> None:
        """Wake the pump, or start it, if it may be needed. Needs `_lock`. Raises Unavailable if it cannot start."""
        lifecycle = self._lifecycle
        if not lifecycle.is_open or not (self._calls or self._outbox or not self.connection.is_idle):
            return
        self._start_pump()
        if self._outbox or lifecycle.followers or lifecycle.pump_sleeps:
            lifecycle.step("wake")
            self._work.notify()

    def _start_pump(self) -> None:
        if self._pump is None:
            pump = threading.Thread(target=self._run_pump, name="zmq-offload-client", daemon=True)
            try:
                pump.start()
            except RuntimeError as error:
                raise Unavailable(f"a client cannot start a thread: {error}") from None
            self._pump = pump

    def _run_pump(self) -> None:
        try:
            while self._wait_for_work():
                # An error fails the calls that were outstanding (`Exchange._fail`); later ones still need a pump. So
                # does a client whose future's callback raises SystemExit.
                with self._socket, contextlib.suppress(BaseException):
                    self._drive()
        finally:
            self._pump_ended.set()

    def _wait_for_work(self) -> bool:
        """Wait until the pump should drive. Returns False when the client is closed."""
        lifecycle = self._lifecycle
        with self._work:
            while lifecycle.is_open:
                unsent = bool(self._outbox) and not self._held
                pause = lifecycle.pause(unsent=unsent, outstanding=bool(self._calls), now=time.monotonic())
                if pause == 0:
                    lifecycle.step("wake")
                    return True
                if pause is not None:
                    lifecycle.step("wake")
                    self._work.wait(pause)
                    continue
                if not self.connection.is_idle and self._exchange.driving is None:  # it connects
                    lifecycle.step("wake")
                    return True
                lifecycle.step("rest")
                while not self._work.wait(max(0.0, min(_EVERY, self.connection.due - time.monotonic()))):
                    if self._exchange.driving is None:  # else its holder looks after the connection
                        lifecycle.step("wake")
                        return lifecycle.is_open
        return False

    def _drive(self) -> None:
        """Drive until a thread asks or nothing is outstanding. Needs `_socket`."""
        lifecycle, calls, outbox, connection = self._lifecycle, self._calls, self._outbox, self.connection
        with self._lock:
            lifecycle.step("drive")
        try:
            if not (calls or outbox):
                self._exchange.look()
            self._exchange.run(
                lambda: lifecycle.turn is not Turn.PUMPED or not (calls or outbox or not connection.is_idle)
            )
        finally:
            with self._lock:
                lifecycle.step("stop")
