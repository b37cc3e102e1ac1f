"""How an event loop drives a connection to the brokers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

from zmq_offload.client.link import Watched
from zmq_offload.client.session import Action, Complete, Fail, Reconnect, Send
from zmq_offload.common.lifetime import made_before_fork, tell_of_forks
from zmq_offload.errors import Cancelled, FailedPrecondition, Internal
from zmq_offload.net.timers import ROUNDING
from zmq_offload.protocol import messages as wire

log = logging.getLogger("zmq_offload")

Ended: TypeAlias = Callable[["Complete | Fail"], None]
"""Is called once with what came of a call, unless the call is canceled before."""


class Reader:
    """The connection, and the loop that watches it. A `lifetime.Resource`, so it does not refer to the client."""

    def __init__(self, connection: Watched) -> None:
        self.connection = connection
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closed = False
        self.forgotten = False

    def watch(self, ready: Callable[[], None]) -> None:
        """Call `ready` whenever messages have arrived."""
        assert self.loop is not None
        self.connection.watch(self.loop, ready)

    def unwatch(self) -> None:
        """Stop watching."""
        if self.loop is not None:
            self.connection.unwatch(self.loop)

    def close(self, linger: int = 100) -> None:
        """Disconnect. `linger` is in milliseconds, for a last Cancel."""
        if not self.closed and not self.forgotten:
            self.closed = True
            self.unwatch()
            self.connection.close(linger)

    def release(self) -> None:
        """Disconnect, in the loop's thread if the loop runs."""
        if self.loop is not None and self.loop.is_running():
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self.loop.call_soon_threadsafe(self.close)
                return
        self.close()

    def leave(self) -> None:
        """Disconnect when the interpreter ends, unless a daemon thread still runs the loop and may use the socket."""
        if self.loop is None or not self.loop.is_running():
            self.close(linger=0)

    def forget(self) -> None:
        """Let go of the connection in a forked child."""
        self.forgotten = True
        self.connection.forget()


class AsyncDriver:
    """Makes the calls of a connection. It belongs to the event loop in which it is first used."""

    def __init__(self, connection: Watched) -> None:
        self.reader = Reader(connection)
        self.connection = connection
        self.session = connection.session
        self._gathers = connection.gathers
        self._calls: dict[int, Ended] = {}
        self._turn = False  # whether the loop is to call `_end_turn`
        self._outbox: list[Send] = []  # what is sent then
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        tell_of_forks(self)

    def forget(self) -> None:
        """Fail all calls in a forked child, whose copy of the parent's loop may run on."""
        self._outbox.clear()
        calls = list(self._calls.items())
        self._calls.clear()
        for number, ended in calls:
            ended(Fail(number, made_before_fork("client")))

    @property
    def outstanding(self) -> int:
        return len(self._calls)

    def attach(self) -> asyncio.AbstractEventLoop:
        """Return the running loop. Raises FailedPrecondition in another loop than the first, and in a forked child."""
        reader = self.reader
        if reader.forgotten:
            raise made_before_fork("client")
        if reader.closed:
            raise Cancelled("the client is closed")
        loop = asyncio.get_running_loop()
        if reader.loop is not loop:
            if reader.loop is not None:
                raise FailedPrecondition(
                    "an AsyncClient belongs to the event loop in which it was first used; make one in each loop"
                )
            reader.loop = loop
            reader.watch(self._ready)
        return loop

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        ended: Ended,
        begin: Callable[..., tuple[int, list[Action]]],
        *args: object,
    ) -> int:
        """Begin a call by the session's method `begin`; return its number. `ended` may be called before that."""
        number, actions = begin(*args, now=loop.time())
        self._calls[number] = ended
        try:
            if self._gathers and len(self._calls) == 1 and not self._turn:
                self._send_alone(loop, actions)
            else:
                self._perform(actions)
        except Exception as error:
            self._fail(error)
        return number

    def _send_alone(self, loop: asyncio.AbstractEventLoop, actions: Sequence[Action]) -> None:
        """Send the only call at once: nothing else would be gathered with it."""
        self._turn = True
        try:
            self._perform(actions)
        finally:
            self._turn = False
        self.connection.flush()
        self._keep_time(loop)

    def cancel(self, number: int) -> None:
        """Cancel a call; its `ended` is not called any more. Does nothing after its end."""
        if self._calls.pop(number, None) is not None and not self.reader.closed:
            self._do(self._perform, self.session.cancel(number))

    async def call(
        self, loop: asyncio.AbstractEventLoop, begin: Callable[..., tuple[int, list[Action]]], *args: object
    ) -> Complete:
        """Begin a call by the session's method `begin` and await its reply. Canceling the task cancels the call."""
        future: asyncio.Future[Complete] = loop.create_future()
        number = self.start(loop, functools.partial(_settle, future), begin, *args)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(number)
            raise

    def close(self) -> None:
        """Cancel what is outstanding and disconnect."""
        if self.reader.closed or self.reader.forgotten:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._do(self._perform, self.session.close())
        self._do(self._flush)
        self.reader.close()

    # --- in the loop ----------------------------------------------------------------------------------------

    def _ready(self) -> None:
        if not self.reader.closed and not self.reader.forgotten:
            try:
                self._take_in()
            except Exception as error:
                self._fail(error)

    def _end_turn(self) -> None:
        """Send what the loop's turn has brought.

        The descriptor is edge-triggered: sending may notice incoming messages, and then it does not fire. So look.
        """
        self._turn = False
        if not self.reader.closed and not self.reader.forgotten:
            self._do(self._flush)
            self._do(self._take_in)

    def _do(self, work: Callable[..., None], *args: object) -> None:
        """Run `work`. If it fails, fail all calls: nobody sees an exception in a callback of the loop."""
        try:
            work(*args)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Fail all outstanding calls. The next call reconnects."""
        failure = self.connection.failure
        if isinstance(failure(error), Internal):
            log.exception("the client failed; %d outstanding calls fail", len(self._calls))
        else:
            log.warning("%s; %d outstanding calls fail", failure(error).message, len(self._calls))
        with contextlib.suppress(OSError):
            self.reader.unwatch()
        self.connection.reset()
        self.session.close()
        self._outbox.clear()
        failed = list(self._calls.items())
        self._calls.clear()
        for number, ended in failed:
            tell(ended, Fail(number, failure(error)))

    def _take_in(self) -> None:
        connection, loop = self.connection, self.reader.loop
        assert loop is not None
        # Read all: the descriptor is edge-triggered and says nothing of messages that are left.
        while connection.is_open and connection.waiting():
            way, now = connection.way, loop.time()
            for message, payload in connection.receive(len(self._calls) or 1):
                self._perform(self.session.received(message, payload, now))
                if connection.way is not way or not connection.is_open:
                    break  # the other messages are of the broker that was left
            else:
                if connection.emptied or not self._calls:
                    break  # what may be left belongs to no call; it is read after the next sending
        self._keep_time(loop)

    def _keep_time(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do what is due, and set the timer for the next deadline. A timer that is early stays, to save a new one for
        each call."""
        now = loop.time()
        deadline = self.session.next_deadline()
        if deadline is not None and deadline <= now:
            if self.connection.is_open and (why := self.connection.refusal()) is not None:
                self._perform(self.session.refused(why, now))
            self._perform(self.session.tick(now))
            deadline = self.session.next_deadline()
        if self._timer is not None and (self._timer_at <= now or (deadline is not None and deadline < self._timer_at)):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and deadline is not None:
            self._timer_at = deadline
            self._timer = loop.call_at(deadline + ROUNDING, self._due)

    def _due(self) -> None:
        self._timer = None
        self._ready()

    def _flush(self) -> None:
        """Send what is in the outbox. All at once wakes libzmq's thread once, and it writes to the broker once."""
        outbox, self._outbox = self._outbox, []
        for action in outbox:
            message = action.message
            if isinstance(message, (wire.Request, wire.Query)) and message.id not in self._calls:
                continue  # it has ended; its memory may not be lent any more
            self._send(action)
        self.connection.flush()

    def _send(self, action: Send) -> None:
        if not self.connection.is_open:
            self._exchange(self.connection.reopen)
        self.connection.send(action)

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                # The first of a turn is sent at once, so that a single call loses no time.
                if not self._turn:
                    if self.reader.loop is not None:
                        self._turn = True
                        self.reader.loop.call_soon(self._end_turn)
                elif not self._gathers:
                    self._outbox.append(action)
                    continue
                self._send(action)
            elif isinstance(action, Reconnect):
                self._outbox.clear()  # it is for the broker that is left; the session sends all calls again
                self._exchange(functools.partial(self.connection.reconnect, action.endpoint))
            else:
                self._end(action)

    def _end(self, action: Complete | Fail) -> None:
        lent = self.connection.still_lent(action.id)
        if lent:
            self._outbox.clear()
            self._exchange(functools.partial(self.connection.reclaim, lent))
            assert self.reader.loop is not None
            self._perform(self.session.reconnected(self.reader.loop.time()))
        ended = self._calls.pop(action.id, None)
        if ended is not None:
            tell(ended, action)

    def _exchange(self, connect: Callable[[], None]) -> None:
        """Replace the connection's socket by `connect`."""
        self.reader.unwatch()
        connect()
        self.reader.watch(self._ready)


def tell(ended: Ended, action: Complete | Fail) -> None:
    """Call `ended`. An exception is its own fault, not that of what leads to the broker."""
    try:
        ended(action)
    except Exception:
        log.exception("a callback of a call failed")


def _settle(future: asyncio.Future[Complete], action: Complete | Fail) -> None:
    """End the future of a call. In a forked child its loop may be closed; then nobody awaits it."""
    if future.done() or future.get_loop().is_closed():
        return
    if isinstance(action, Fail):
        future.set_exception(action.error)
        future.exception()  # in a forked child nobody awaits it, and asyncio would warn of that
    else:
        future.set_result(action)
