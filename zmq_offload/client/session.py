"""The client's decisions: request numbers, deadlines, what to send again, when to try another broker.

Pure: no socket and no clock. Time is passed in, in seconds of a clock that never goes back.

A session has a random token. Each of its calls has a number and a deadline and ends exactly once, with a `Complete` or
a `Fail`. While calls are outstanding, Pings ask the broker about them, and calls that the broker does not hold are sent
again. If a broker stays silent, or has nobody to serve a call, the session goes to the next endpoint and sends all
outstanding calls there. A reply to a call that has ended is dropped.

Each Pong says how large a frame the broker accepts. A call with a frame over `limits.UNASKED_BYTES` waits for the first
Pong. A call with a frame over the broker's limit fails at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from zmq_offload.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    OffloadError,
    ProtocolError,
    Status,
    Unauthenticated,
    Unavailable,
    from_status,
)
from zmq_offload.net.timers import Timers
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import LATEST


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which of several brokers is tried first, and times that decide when a silent one is left for the next one.

    Parameters
    ----------
    heartbeat : float, default 0.5
        Seconds between two Pings while calls are outstanding.
    patience : float, default 1.5
        Seconds that a broker may be silent while calls are outstanding.
    slowest_link : float, default 1e6
        Bytes per second. The time to send all outstanding inputs at this rate is added to `patience`, because a Ping
        is sent after them; but not while there is no connection.
    spread : bool, default True
        Whether each client tries the brokers in an order of its own, so that clients spread over them. False: in the
        order given, for a broker that is preferred while it works.
    come_back : float, default 30.0
        Seconds after which a client that left a broker looks whether that is back, and again after as many: up to twice
        as many, by chance. `math.inf`: it stays where it is.

    Examples
    --------
    >>> Client(["tcp://edge-1:5555", "tcp://edge-2:5555"], policy=RetryPolicy(heartbeat=0.1, patience=0.3))
    """

    heartbeat: float = 0.5
    patience: float = 1.5
    slowest_link: float = 1e6
    spread: bool = True
    come_back: float = 30.0

    @property
    def probe_seconds(self) -> float:
        """How long a client waits, at most, for the answer of a broker that may be back: not until it would try the
        next one."""
        return min(1.0, self.patience / 2)


Payload: TypeAlias = Sequence["bytes | memoryview"]
"""Frames of a call's inputs, as `encode_tensors` makes them."""


class Send(NamedTuple):
    """Send this to the broker."""

    message: wire.FromClient
    payload: Payload = ()


class Complete(NamedTuple):
    """Call `id` has its Result or Answer."""

    id: int
    message: wire.Result | wire.Answer
    payload: Sequence[object]


class Fail(NamedTuple):
    """Call `id` failed."""

    id: int
    error: OffloadError


class Reconnect(NamedTuple):
    """Close the connection, dropping what is queued in it, and connect to endpoint number `endpoint`."""

    endpoint: int


Action: TypeAlias = Send | Complete | Fail | Reconnect


@dataclass(slots=True)
class _Call:
    started: float
    deadline: float
    message: wire.Request | wire.Query
    payload: Payload
    nbytes: int
    sent_at: float
    refusals: int = 0
    """Brokers that answered and could not serve it."""


class ClientSession:
    """One client's calls. `endpoints` are used only to name and count them."""

    def __init__(
        self, token: bytes, endpoints: Sequence[str], policy: RetryPolicy, max_frame_bytes: int = limits.MESSAGE_BYTES
    ) -> None:
        self.token = token
        self._endpoints = endpoints
        self._policy = policy
        self._max_frame_bytes = max_frame_bytes
        self._broker_limit: int | None = None  # bytes of a frame, once the broker has said so
        self._unsent: set[int] = set()  # calls that wait for that
        self._calls: dict[int, _Call] = {}
        self._deadlines: Timers[int] = Timers()
        self._last_id = 0
        self._endpoint = 0
        self._bytes = 0  # of outstanding requests
        self._heard_at = 0.0  # the last message since calls are outstanding, or when they began to be
        self._answered = False  # whether there was such a message
        self._alive = False  # whether the broker ever answered, and did not stay silent for a call since then
        self._complaint = ""  # the text of an Error that belongs to no call
        self._ping_at = 0.0
        self._switched_at = -math.inf
        self._refused = 0  # endpoints in a row that refused this client's key
        self.may_send = True
        """Whether inputs may be on their way: False while it is known that there is no connection."""

    @property
    def outstanding(self) -> int:
        """Number of calls that have not ended."""
        return len(self._calls)

    def holds(self, number: int) -> bool:
        """Whether a call has not ended."""
        return number in self._calls

    def number_after(self, other: ClientSession) -> None:
        """Let no call from now on have the number of one of the other's."""
        self._last_id = max(self._last_id, other._last_id)

    # --- calls ----------------------------------------------------------------------------------------------

    def request(
        self,
        model: str,
        payload: Payload,
        timeout: float,
        version: int = LATEST,
        priority: int = 0,
        signature: bytes = b"",
        label: str = "",
        trace: bytes = b"",
        caller: str = "",
        *,
        now: float,
    ) -> tuple[int, list[Action]]:
        """Begin a call of a model. Returns its number and the actions to take."""
        number = self._last_id + 1
        most, budget_us = self._max_frame_bytes, budget(timeout)
        message = wire.Request(
            self.token, number, model, version, budget_us, priority, signature, most, label, trace, caller
        )
        return number, self._begin(message, payload, sum(map(len, payload)), timeout, now)

    def query(self, what: str, timeout: float, *, now: float) -> tuple[int, list[Action]]:
        """Begin a call that asks the broker for "models" or "status"."""
        number = self._last_id + 1
        return number, self._begin(wire.Query(self.token, number, what), (), 0, timeout, now)

    def cancel(self, number: int) -> list[Action]:
        """Cancel a call, unless it has ended."""
        if number not in self._calls:
            return []
        self._end(number)
        return [Send(wire.Cancel(self.token, number)), Fail(number, Cancelled("canceled by the caller"))]

    def close(self) -> list[Action]:
        """Cancel all calls, and forget what is known of the broker."""
        self._broker_limit, self._alive = None, False
        return [action for number in list(self._calls) for action in self.cancel(number)]

    def _begin(
        self, message: wire.Request | wire.Query, payload: Payload, nbytes: int, timeout: float, now: float
    ) -> list[Action]:
        if not self._calls:
            # While no call was outstanding no message was expected, so silence until now means nothing.
            self._heard_at, self._answered = now, False
            self._ping_at = now + self._policy.heartbeat
        self._last_id += 1
        call = self._calls[self._last_id] = _Call(now, now + timeout, message, payload, nbytes, now)
        self._deadlines.set(self._last_id, now + timeout)
        self._bytes += nbytes
        if nbytes > limits.UNASKED_BYTES or (self._broker_limit is not None and nbytes > self._broker_limit):
            return self._send_if_it_fits(self._last_id, call, message)
        return [Send(message, payload)]

    def _send_if_it_fits(self, number: int, call: _Call, message: wire.Request | wire.Query) -> list[Action]:
        """Send a call, or fail it if it has a frame over the broker's limit. If the limit is not known, ask first."""
        longest, most = max(map(len, call.payload), default=0), self._broker_limit
        if most is None and longest > limits.UNASKED_BYTES:
            ask = not self._unsent
            self._unsent.add(number)
            return [Send(wire.Ping(self.token, []))] if ask else []
        if most is not None and longest > most:
            self._end(number)
            text = (
                f"the inputs have a frame of {longest} bytes; the broker at {self._endpoints[self._endpoint]} takes "
                f"at most {most} (its --max-frame-bytes), this client {self._max_frame_bytes} (max_frame_bytes)"
            )
            return [Fail(number, InvalidArgument(text))]
        return [Send(message, call.payload)]

    def _end(self, number: int) -> _Call:
        call = self._calls.pop(number)
        self._unsent.discard(number)
        self._deadlines.cancel(number)
        self._bytes -= call.nbytes
        return call

    # --- events ---------------------------------------------------------------------------------------------

    def received(self, message: wire.ToClient, payload: Sequence[object], now: float) -> list[Action]:
        """Take a message of the broker."""
        self._heard_at, self._answered, self._alive, self._refused = now, True, True, 0
        if message.session != self.token:
            if isinstance(message, wire.Error) and message.id == 0:
                self._complaint = message.text
            return []
        if isinstance(message, wire.Pong):
            self._broker_limit = message.max_frame_bytes
            unsent, self._unsent = sorted(self._unsent.difference(message.ids)), set()
            return self._send_again([*message.ids, *unsent], now)
        number = message.id
        call = self._calls.get(number)
        if call is None:
            return []  # it has ended
        if isinstance(message, wire.Error):
            if message.code == Status.UNAVAILABLE.value and self._may_switch(call, now):
                call.refusals += 1
                return self._switch(now)
            self._end(number)
            return [Fail(number, from_status(message.code, message.text))]
        self._end(number)
        if type(message) is not _ANSWERED_BY[type(call.message)]:
            text = f"the broker answered a {type(call.message).__name__} with a {type(message).__name__}"
            return [Fail(number, ProtocolError(text))]
        return [Complete(number, message, payload)]

    def tick(self, now: float) -> list[Action]:
        """Do what is due: expire calls, send Pings, leave a silent broker."""
        actions: list[Action] = []
        while (number := self._deadlines.pop(now)) is not None:
            actions += self._expire(number, now)
        if not self._calls:
            return actions
        if now >= self._silent_at():
            actions += self._switch(now)
        elif now >= self._ping_at:
            self._ping_at = now + self._policy.heartbeat
            # A call that was sent a moment ago is not asked about.
            old = [n for n, call in self._calls.items() if call.sent_at + self._policy.heartbeat <= now]
            actions += [
                Send(wire.Ping(self.token, old[at : at + limits.PING_IDS]))
                for at in range(0, max(1, len(old)), limits.PING_IDS)
            ]
        return actions

    def refused(self, why: str, now: float) -> list[Action]:
        """The broker refuses this client's key. Try each endpoint, then fail all calls; the next call tries again."""
        self._refused += 1
        if self._calls and self._refused < len(self._endpoints):
            return self._switch(now)
        self._refused = 0
        failed: list[Action] = []
        for number in list(self._calls):
            self._end(number)
            failed.append(Fail(number, Unauthenticated(why)))
        return [Reconnect(self._endpoint), *failed]

    def reconnected(self, now: float) -> list[Action]:
        """Send all calls again after the connection was replaced for another reason than a Reconnect."""
        self._unsent = set()
        return self._send_again(list(self._calls), now)

    def next_deadline(self) -> float | None:
        """Return when `tick` is due, or None."""
        deadline = self._deadlines.next()
        return None if deadline is None else min(deadline, self._ping_at, self._silent_at())

    def _silent_at(self) -> float:
        if not self.may_send:
            return self._heard_at + self._policy.patience
        sent = self._bytes
        if self._unsent:  # a Ping does not wait for these
            sent -= sum(self._calls[number].nbytes for number in self._unsent)
        return self._heard_at + self._policy.patience + sent / self._policy.slowest_link

    def _may_switch(self, call: _Call, now: float) -> bool:
        """Whether to take a call that this broker cannot serve to the next.

        A call goes to each broker once. All outstanding calls move with it, so this happens no more often than silent
        brokers would be left.
        """
        return call.refusals < len(self._endpoints) - 1 and now >= self._switched_at + self._policy.patience

    def _switch(self, now: float) -> list[Action]:
        """Go to the next endpoint with all outstanding calls."""
        self._endpoint = (self._endpoint + 1) % len(self._endpoints)
        self._switched_at = self._heard_at = now
        self._alive = False
        self._ping_at = now + self._policy.heartbeat
        self._broker_limit, self._unsent = None, set()
        return [Reconnect(self._endpoint), *self._send_again(list(self._calls), now)]

    def _expire(self, number: int, now: float) -> list[Action]:
        call = self._end(number)
        spent = call.deadline - call.started
        cancel = Send(wire.Cancel(self.token, number))
        # A broker that answered earlier is silent only if it does not answer a Ping either.
        if self._answered or (self._alive and now < self._heard_at + self._policy.heartbeat):
            said = f"; the broker said: {self._complaint}" if self._complaint else ""
            return [cancel, Fail(number, DeadlineExceeded(f"deadline exceeded after {spent:.3f} s{said}"))]
        self._alive = False
        where = " or ".join(self._endpoints)
        return [cancel, Fail(number, Unavailable(f"no broker answered at {where} within {spent:.3f} s"))]

    def _send_again(self, numbers: Sequence[int], now: float) -> list[Action]:
        actions: list[Action] = []
        for number in numbers:
            call = self._calls.get(number)
            if call is None:
                continue
            call.sent_at = now
            message = call.message
            if isinstance(message, wire.Request):
                message = message._replace(budget_us=budget(call.deadline - now))
            actions += self._send_if_it_fits(number, call, message)
        return actions


_ANSWERED_BY: dict[type, type] = {wire.Request: wire.Result, wire.Query: wire.Answer}


@functools.lru_cache(64)
def budget(timeout: float) -> int:
    """The broker's time for a call, in microseconds.

    A little less than the caller's: the broker's error says where the request was when time ran out, so it should
    arrive before this client's own.
    """
    return max(0, int((timeout - min(0.02, timeout / 20)) * 1e6))
