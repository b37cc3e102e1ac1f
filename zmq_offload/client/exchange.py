"""What a thread does while it drives a synchronous client's socket: send, receive, keep time, end calls.

`zmq_offload.client.driver` decides which thread that is; the methods here need its `_socket` lock.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from zmq_offload.client.calls import Call
from zmq_offload.client.lifecycle import Lifecycle
from zmq_offload.client.link import Polled
from zmq_offload.client.session import Action, Complete, Fail, Reconnect, Send
from zmq_offload.errors import Internal, Unavailable
from zmq_offload.net import transport

log = logging.getLogger("zmq_offload")


class Exchange:
    """A client's calls and its traffic with the broker."""

    def __init__(self, connection: Polled, lifecycle: Lifecycle, wake: transport.Wake) -> None:
        self.lock = threading.Lock()
        """Guards all that follows, the session and the lifecycle."""
        self.calls: dict[int, Call[Any]] = {}
        self.outbox: deque[Action] = deque()
        self.woken = False
        """Whether `wake` is set: once is enough."""
        self.driving: int | None = None
        """The thread that drives."""
        self._connection = connection
        self._session = connection.session
        self._lifecycle = lifecycle
        self._wake = wake
        connection.wake_by(wake.fileno())

    def send(self) -> None:
        """Send what waits in the outbox."""
        self._guarded(self._perform)

    def run(self, enough: Callable[[], bool], until: float | None = None) -> None:
        """Send, receive and keep time until `enough`, until the time `until`, or until the client is closed."""
        self._guarded(self._run, enough, until)

    def look(self) -> None:
        """Keep the connection alive while nothing is outstanding."""
        self._guarded(self._look)

    def forget(self) -> list[Call[Any]]:
        """In a forked child: drop everything and return the calls. A thread that is not here may hold the lock."""
        self.lock = threading.Lock()
        self.driving = None
        calls = list(self.calls.values())
        self.calls.clear()
        self.outbox.clear()
        return calls

    def _guarded(self, work: Callable[..., None], *args: object) -> None:
        self.driving = threading.get_ident()
        try:
            work(*args)
        except Exception as error:
            self._fail(error)
        except BaseException:
            self._interrupted()
            raise
        finally:
            self.driving = None

    def _interrupted(self) -> None:
        """Go on after Ctrl-C, which ends a thread's work anywhere.

        Bytes that were received or sent just now may not be counted: the rest of the connection would be read as
        something else. So it is made anew. A reply that was in hand is lost.
        """
        try:
            self._connection.reclaim(())
        except Exception as error:
            self._fail(error)
            return
        with self.lock:
            self.outbox.extend(self._session.reconnected(time.monotonic()))
            ending = {action.id for action in self.outbox if isinstance(action, (Complete, Fail))}
            for number, call in self.calls.items():
                if not (number in ending or self._session.holds(number) or call.is_done()):
                    text = "the reply was lost when a thread that received it was interrupted; call again"
                    self.outbox.append(Fail(number, Unavailable(text)))

    def _fail(self, error: Exception) -> None:
        """Fail all outstanding calls, since driving failed and nobody may wait forever. The next call reconnects."""
        failure = self._connection.failure
        if isinstance(failure(error), Internal):
            log.exception("the client failed; %d outstanding calls fail", len(self.calls))
        else:
            log.warning("%s; %d outstanding calls fail", failure(error).message, len(self.calls))
        self._connection.reset()
        with self.lock:
            self._session.close()
            self.outbox.clear()
            calls = list(self.calls.values())
            self.calls.clear()
        leaving: BaseException | None = None
        for call in calls:
            try:
                call.end(Fail(call.number, failure(error)))
            except BaseException as end:  # noqa: PERF203  (a callback ends its thread, but not the other calls)
                leaving = end
        if leaving is not None:
            raise leaving

    def _run(self, enough: Callable[[], bool], until: float | None) -> None:
        session, connection, outbox, lock = self._session, self._connection, self.outbox, self.lock
        while True:
            if outbox:
                self._perform()
            if enough() or not self._lifecycle.is_open:
                return
            if not connection.is_open:
                connection.reopen()
            with lock:
                deadline = session.next_deadline()
            now = time.monotonic()
            if until is not None:
                if now >= until:
                    return
                deadline = until if deadline is None else min(deadline, until)
            due = connection.due if deadline is None else min(deadline, connection.due)
            arrived, woken = connection.wait(None if due == math.inf else max(0.0, due - now))
            now = time.monotonic()
            if woken:
                with lock:
                    self._wake.clear()
                    self.woken = False
            if arrived:
                self._take_in(now)
            if deadline is not None and deadline <= now:
                self._keep_time(now)

    def _look(self) -> None:
        if self._connection.is_open:
            arrived, _ = self._connection.wait(0.0)
            if arrived:
                self._take_in(time.monotonic())

    def _take_in(self, now: float) -> None:
        """Pass received messages to the session, at most one for each outstanding call: no reply follows the last."""
        messages = self._connection.receive(len(self.calls) or 1)
        with self.lock:
            for message, payload in messages:
                actions = self._session.received(message, payload, now)
                self.outbox.extend(actions)
                if actions and type(actions[0]) is Reconnect:
                    break  # the other messages are of the broker that is left

    def _keep_time(self, now: float) -> None:
        with self.lock:
            deadline = self._session.next_deadline()
            if deadline is not None and deadline <= now:
                if (why := self._connection.refusal()) is not None:
                    self.outbox.extend(self._session.refused(why, now))
                self.outbox.extend(self._session.tick(now))

    def _perform(self) -> None:
        """Carry out the actions in the outbox. Only the thread that drives takes any out."""
        connection, outbox, sent = self._connection, self.outbox, False
        while outbox:
            action = outbox[0]  # it stays there until it is done, in case of Ctrl-C
            if isinstance(action, Send):
                if not connection.is_open:
                    connection.reopen()
                connection.send(action)
                sent = True
            elif isinstance(action, Reconnect):
                connection.reconnect(action.endpoint)
            else:
                self._end(action)
            outbox.popleft()
        if sent and connection.is_open:
            connection.flush()

    def _end(self, action: Complete | Fail) -> None:
        lent = self._connection.still_lent(action.id)
        if lent:
            self._connection.reclaim(lent)
            with self.lock:
                self.outbox.extend(self._session.reconnected(time.monotonic()))
        call = self.calls.get(action.id)
        if call is not None:
            if not call.is_done():
                call.end(action)
            del self.calls[action.id]
