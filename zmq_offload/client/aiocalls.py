"""Calls of an event loop that end with a callback: over a connection to brokers, or of a broker in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from zmq_offload.client.aiodriver import Ended, tell
from zmq_offload.client.aioreturning import AsyncDrivers
from zmq_offload.client.link import Watched, checked_request, in_place
from zmq_offload.client.session import Complete, Fail, budget
from zmq_offload.errors import Cancelled, from_status
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.packed import Packed


class Calls(Protocol):
    """Begins calls and ends them. `ended` is called once with what came of a call, unless it is canceled before."""

    def request(
        self,
        ended: Ended,
        model: str,
        inputs: Packed,
        version: int | None,
        timeout: float,
        priority: int,
        trace: bytes = b"",
        label: str | None = None,
        caller: str = "",
    ) -> int:
        """Begin to run a model; returns the call's number. `caller` is whom it is for, as a Request has it.

        Raises InvalidArgument naming the argument or input, and Cancelled after `close`.
        """

    def query(self, ended: Ended, what: str, timeout: float) -> int:
        """Ask a broker for "models" or "status"; likewise."""

    def cancel(self, number: int) -> None:
        """Cancel a call, unless it has ended."""

    def close(self) -> None:
        """Cancel what is outstanding: its calls end with Cancelled."""


class LinkCalls:
    """Calls over a connection. Implements `Calls`.

    `again` makes a connection that prefers the first of the brokers, to go back to one that was left. Without it, the
    connection stays where it is.
    """

    def __init__(self, link: Watched, again: Callable[[Sequence[str]], Watched] | None = None) -> None:
        self._drivers = AsyncDrivers(link, again)
        self._drivers.driver.attach()
        self.cancel, self.close = self._drivers.cancel, self._drivers.close

    def request(
        self,
        ended: Ended,
        model: str,
        inputs: Packed,
        version: int | None,
        timeout: float,
        priority: int,
        trace: bytes = b"",
        label: str | None = None,
        caller: str = "",
    ) -> int:
        driver = self._drivers.current()
        arguments = driver.connection.packed_request(model, inputs, version, timeout, priority, label)
        return driver.start(driver.attach(), ended, driver.session.request, *arguments, trace, caller)

    def query(self, ended: Ended, what: str, timeout: float) -> int:
        driver = self._drivers.driver
        return driver.start(driver.attach(), ended, driver.session.query, what, timeout)


Messages: TypeAlias = "Sequence[tuple[wire.FromClient, Sequence[Any]]]"
"""Messages of a client with their payloads."""

Replies: TypeAlias = "Sequence[tuple[wire.ToClient, Sequence[Any]]]"
"""Messages to it, likewise."""


class LocalBroker(Protocol):
    """A broker that runs in the event loop of its client's process."""

    endpoint: str
    """Where others reach it."""

    def attach(self, deliver: Callable[[Replies], None] | None) -> None:
        """Hand messages for the client to `deliver`, never while the client hands some over; with None, drop them."""

    def take(self, messages: Messages) -> None:
        """Take messages of the client."""


class LocalCalls:
    """Calls of a broker in this process. Messages are handed over as they are, without a socket. Implements `Calls`.

    The broker is always there and answers each request in its time, so nothing is sent again and nothing is timed here.
    `sharing` is the broker's: long tensors for its workers on this host stay where they lie.
    """

    def __init__(self, broker: LocalBroker, max_frame_bytes: int, sharing: Sharing | None = None) -> None:
        self._broker = broker
        self._most = max_frame_bytes
        self._sharing = sharing
        self._loop = asyncio.get_running_loop()
        self._token = os.urandom(wire.SESSION_BYTES)
        self._last = 0
        self._calls: dict[int, Ended] = {}
        self._out: list[tuple[wire.FromClient, Sequence[Any]]] = []
        self._turn = False  # whether the loop is to call `_flush`
        self._closed = False
        broker.attach(self._delivered)

    def request(
        self,
        ended: Ended,
        model: str,
        inputs: Packed,
        version: int | None,
        timeout: float,
        priority: int,
        trace: bytes = b"",
        label: str | None = None,
        caller: str = "",
    ) -> int:
        model, payload, timeout, wanted, priority, signature, name = checked_request(
            model, inputs, version, timeout, priority, label, self._most
        )
        number = self._last + 1
        budget_us = budget(timeout)
        message = wire.Request(
            self._token, number, model, wanted, budget_us, priority, signature, self._most, name, trace, caller
        )
        return self._begin(ended, number, message, payload)

    def query(self, ended: Ended, what: str, timeout: float) -> int:
        """The broker answers at once, so the timeout does not matter."""
        number = self._last + 1
        return self._begin(ended, number, wire.Query(self._token, number, what), ())

    def cancel(self, number: int) -> None:
        if self._calls.pop(number, None) is not None and not self._closed:
            self._send(wire.Cancel(self._token, number), ())

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        calls, self._calls = self._calls, {}
        self._out += [(wire.Cancel(self._token, number), ()) for number in calls]
        self._flush()
        self._broker.attach(None)
        for number, ended in calls.items():
            tell(ended, Fail(number, Cancelled("canceled by the caller")))

    def _begin(self, ended: Ended, number: int, message: wire.FromClient, payload: Sequence[Any]) -> int:
        if self._closed:
            raise Cancelled("the client is closed")
        self._last = number
        self._calls[number] = ended
        if len(self._calls) == 1 and not self._out:
            self._broker.take([(message, payload)])  # nothing else would be gathered with it
        else:
            self._send(message, payload)
        return number

    def _send(self, message: wire.FromClient, payload: Sequence[Any]) -> None:
        """Hand a message over with the others of the loop's turn: those that go to one worker are sent together."""
        self._out.append((message, payload))
        if not self._turn:
            self._turn = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._turn = False
        out, self._out = self._out, []
        if out:
            self._broker.take(out)

    def _delivered(self, replies: Replies) -> None:
        for message, payload in replies:
            assert not isinstance(message, wire.Pong)  # nothing here asks for it
            ended = self._calls.pop(message.id, None)
            if ended is None:
                continue  # it was canceled
            if payload and type(payload[0]) is not bytes:  # a long header of which only a part came at first
                payload = [bytes(payload[0]), *payload[1:]]
            read, frames = in_place(self._sharing, message, payload)
            if isinstance(read, wire.Error):
                tell(ended, Fail(read.id, from_status(read.code, read.text)))
            else:
                tell(ended, Complete(message.id, read, frames))  # type: ignore[arg-type]  # as above
