"""Connections with CURVE keys: libzmq's. A thread of libzmq sends, receives and answers heartbeats at any time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import zmq

from zmq_offload.net import transport
from zmq_offload.net.handshake import HandshakeMonitor, Security
from zmq_offload.net.line import Event
from zmq_offload.net.pyzmq_internals import Sendable
from zmq_offload.protocol import messages as wire

_BATCH = 64
"""Messages to receive from one broker before the next one, and before an attempt runs."""

_SETTLE = 0.002
"""Seconds in which libzmq's thread sends what is queued."""

_LINGER_MS = 2000


class KeyedLinks:
    """Implements `workers.links.Links`. It connects when it is made."""

    def __init__(
        self,
        brokers: Sequence[str],
        security: Security,
        *,
        heartbeat: float,
        most_messages: int,
        max_frame_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._brokers = brokers
        self._security = security
        self._heartbeat = heartbeat
        self._most_messages = most_messages
        self._max_frame_bytes = max_frame_bytes
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._monitors: dict[int, HandshakeMonitor] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._inboxes = [self._connect(broker) for broker in range(len(brokers))]
        self._find_sources()

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        self._watched[descriptor] = ready
        self._find_sources()

    def unwatch(self, descriptor: int) -> None:
        del self._watched[descriptor]
        self._find_sources()

    def wait(self, until: float, *, many: bool) -> list[Event]:
        milliseconds = -1 if until == math.inf else max(0, math.ceil((until - self._clock()) * 1000))
        poll = self._poll
        events: list[Event] = []
        for source in poll.wait(milliseconds):
            if isinstance(source, transport.Inbox):
                # Those that can run together are received together.
                messages = source.take(_BATCH) if many else source.take_after(poll, _BATCH)
                events.append((self._inboxes.index(source), messages))
            elif source in self._watched:
                self._watched[source]()
        return events

    def look(self) -> list[Event]:
        return [(broker, inbox.take(_BATCH)) for broker, inbox in enumerate(self._inboxes) if inbox.waiting()]

    def send(self, broker: int, message: wire.FromWorker, payload: Sequence[Sendable] = ()) -> None:
        self.answer(broker, [wire.encode(message), *payload])

    def answer(self, broker: int, frames: list[Any]) -> None:
        try:
            transport.send(self._inboxes[broker].socket, frames)
        except zmq.Again:
            return  # a connection whose key was refused; the session replaces it when the broker stays silent

    def flush(self) -> None:
        """`send` does all."""

    def settle(self) -> None:
        time.sleep(_SETTLE)

    def lend(self, kind: Hashable) -> None:
        """libzmq's thread goes on."""

    def take_back(self, kind: Hashable, seconds: float) -> None:
        """Nothing was lent."""

    def forget(self) -> None:
        """Nothing was remembered."""

    def reconnect(self, broker: int) -> None:
        self._monitors[broker].close()
        self._inboxes[broker].socket.close(linger=0)
        self._inboxes[broker] = self._connect(broker)
        self._find_sources()

    def refusal(self, broker: int) -> str | None:
        return self._monitors[broker].refusal()

    def shares(self, broker: int) -> bool:
        return False

    def close(self, lingering: Sequence[bool]) -> None:
        for broker, inbox in enumerate(self._inboxes):
            self._monitors[broker].close()
            inbox.socket.close(linger=_LINGER_MS if lingering[broker] else 0)
        self._context.term()

    def _connect(self, broker: int) -> transport.Inbox:
        socket = transport.make_socket(
            self._context, zmq.DEALER, max_frame_bytes=self._max_frame_bytes, heartbeat=self._heartbeat
        )
        socket.setsockopt(zmq.RCVHWM, self._most_messages)
        self._security.protect(socket)
        self._monitors[broker] = HandshakeMonitor(socket)
        transport.connect(socket, self._brokers[broker])
        return transport.Inbox(socket)

    def _find_sources(self) -> None:
        self._poll = transport.Poll(self._inboxes, list(self._watched))
