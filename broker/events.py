"""The events that the broker's core handles, and the actions that it returns. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from broker.state import Payload
from zmq_offload.errors import ProtocolError
from zmq_offload.net.grants import Grant
from zmq_offload.protocol import messages as wire


class FromClient(NamedTuple):
    """A message came in at the frontend. `user` is the client's key, empty on a broker without keys."""

    peer: bytes
    message: wire.FromClient
    payload: Payload
    user: str = ""


class FromWorker(NamedTuple):
    """A message came in at the backend. `address` is the worker's; it is known with an Announce."""

    peer: bytes
    message: wire.FromWorker
    payload: Payload
    user: str = ""
    address: str = ""


class Authorized(NamedTuple):
    """Only these keys may be used from now on. A broker without keys never gets this event."""

    clients: Mapping[str, Grant]
    workers: Mapping[str, Grant]


class Malformed(NamedTuple):
    """Bytes came in that are not a message."""

    peer: bytes
    frontend: bool
    error: ProtocolError
    address: str = ""


class Undelivered(NamedTuple):
    """An action could not be done: its peer is gone or, if `full`, takes no more messages."""

    action: ToClient | ToWorker
    full: bool


class Disconnected(NamedTuple):
    """The connection of a worker ended. libzmq does not say which: then `peer` is None."""

    peer: bytes | None = None


class Tick(NamedTuple):
    """Time passed."""


class Stop(NamedTuple):
    """Stop: take no more requests, and finish the accepted ones within `grace` seconds."""

    grace: float


class ToClient(NamedTuple):
    """Send a message to a client."""

    peer: bytes
    message: wire.ToClient
    payload: Payload = ()


class ToWorker(NamedTuple):
    """Send a message to a worker."""

    peer: bytes
    message: wire.ToWorker
    payload: Payload = ()


Event: TypeAlias = FromClient | FromWorker | Authorized | Malformed | Undelivered | Disconnected | Tick | Stop
Action: TypeAlias = ToClient | ToWorker
