"""The events that the broker's core handles, and the actions that it returns. Pure.

A Struct is made in half of the time of a NamedTuple. Those without `gc` are never a part of a cycle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from broker.state import Payload
from zmq_offload.errors import ProtocolError
from zmq_offload.net.grants import Grant
from zmq_offload.protocol import messages as wire


class FromClient(Struct, gc=False):
    """A message came in at the frontend. `user` is the client's key, empty on a broker without keys."""

    peer: bytes
    message: wire.FromClient
    payload: Payload
    user: str = ""


class FromWorker(Struct, gc=False):
    """A message came in at the backend. `address` is the worker's; it is known with an Announce."""

    peer: bytes
    message: wire.FromWorker
    payload: Payload
    user: str = ""
    address: str = ""


class Authorized(Struct, gc=False):
    """Only these keys may be used from now on. A broker without keys never gets this event."""

    clients: Mapping[str, Grant]
    workers: Mapping[str, Grant]


class Malformed(Struct):
    """Bytes came in that are not a message. `error` has no traceback, which would keep what the loop had in hand."""

    peer: bytes
    frontend: bool
    error: ProtocolError
    address: str = ""


class Undelivered(Struct, gc=False):
    """An action could not be done: its peer is gone or, if `full`, takes no more messages."""

    action: ToClient | ToWorker
    full: bool


class Disconnected(Struct, gc=False):
    """The connection of a worker ended. libzmq does not say which: then `peer` is None."""

    peer: bytes | None = None


class Tick(Struct, gc=False):
    """Time passed."""


class Stop(Struct, gc=False):
    """Stop: take no more requests, and finish the accepted ones within `grace` seconds."""

    grace: float


class ToClient(Struct, gc=False):
    """Send a message to a client."""

    peer: bytes
    message: wire.ToClient
    payload: Payload = ()


class ToWorker(Struct, gc=False):
    """Send a message to a worker."""

    peer: bytes
    message: wire.ToWorker
    payload: Payload = ()


Event: TypeAlias = FromClient | FromWorker | Authorized | Malformed | Undelivered | Disconnected | Tick | Stop
Action: TypeAlias = ToClient | ToWorker
