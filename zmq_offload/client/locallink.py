"""A broker in this process, as an `AsyncDriver` reaches it: messages are handed over as they are, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from zmq_offload.client.link import Link, in_place
from zmq_offload.client.session import RetryPolicy, Send
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.protocol import messages as wire

if TYPE_CHECKING:
    import zmq

Messages: TypeAlias = "Sequence[tuple[wire.FromClient, Sequence[Any]]]"
"""Messages of a client with their payloads."""

Replies: TypeAlias = "list[tuple[wire.ToClient, Sequence[Any]]]"
"""Messages to it, likewise."""


class LocalBroker(Protocol):
    """A broker that runs in the event loop of its client's process."""

    endpoint: str
    """Where others reach it."""

    def attach(self, deliver: Callable[[Replies], None] | None) -> None:
        """Hand messages for the client to `deliver`, never while the client hands some over; with None, drop them."""

    def take(self, messages: Messages) -> None:
        """Take messages of the client."""


class LocalLink(Link):
    """The way to a `LocalBroker`. It is always there, and nothing is lost on it.

    `sharing` is the broker's: long tensors for its workers on this host stay where they lie.
    """

    gathers = True

    def __init__(
        self, broker: LocalBroker, policy: RetryPolicy | None, max_frame_bytes: int, sharing: Sharing | None = None
    ) -> None:
        super().__init__([broker.endpoint], policy, max_frame_bytes)
        self.way = self._broker = broker
        self._sharing = sharing
        self._ready: Callable[[], None] = _nothing
        self._inbox: Replies = []
        self._out: list[tuple[wire.FromClient, Sequence[Any]]] = []
        self._open()

    @property
    def emptied(self) -> bool:
        return True

    def _open(self) -> None:
        self.is_open = True
        self._broker.attach(self._delivered)

    def _delivered(self, replies: Replies) -> None:
        self._inbox += replies
        self._ready()

    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        self._ready = ready

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ready = _nothing

    def send(self, action: Send) -> None:
        self._out.append((action.message, action.payload))

    def flush(self) -> None:
        out, self._out = self._out, []
        if out:
            self._broker.take(out)

    def waiting(self) -> bool:
        return bool(self._inbox)

    def receive(self, most: int) -> list[tuple[wire.ToClient, Sequence[object]]]:
        inbox, self._inbox = self._inbox, []
        return [in_place(self._sharing, message, _with_header(payload)) for message, payload in inbox]

    def refusal(self) -> str | None:
        return None

    def reconnect(self, endpoint: int) -> None:
        self.reset()
        self._open()

    def still_lent(self, number: int) -> Sequence[zmq.MessageTracker]:
        return ()

    def reclaim(self, lent: Sequence[zmq.MessageTracker]) -> None:
        raise AssertionError("nothing is lent")

    def reset(self) -> None:
        self.is_open = False
        self._inbox, self._out = [], []
        self._broker.attach(None)

    def close(self, linger: int = 100) -> None:
        if linger:
            self.flush()
        self.reset()

    def forget(self) -> None:
        self.is_open = False


def _with_header(payload: Sequence[Any]) -> Sequence[Any]:
    """Make bytes of the header, which is read here. A long one may be a view of memory of its own."""
    if not payload or type(payload[0]) is bytes:
        return payload
    return [bytes(payload[0]), *payload[1:]]


def _nothing() -> None:
    """Nobody watches."""
