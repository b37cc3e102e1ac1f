"""What happens to the broker's core, and what it wants done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from broker.state import Payload
from zmq_offload.errors import ProtocolError
from zmq_offload.net.grants import Grant
from zmq_offload.protocol import messages as wire


class FromClient(NamedTuple):
    """A message came in at the frontend, from the holder of the key `user` where there are keys."""

    peer: bytes
    message: wire.FromClient
    payload: Payload
    user: str = ""


class FromWorker(NamedTuple):
    """A message came in at the backend. `address` is the worker's, where it is known: with an Announce."""

    peer: bytes
    message: wire.FromWorker
    payload: Payload
    user: str = ""
    address: str = ""


class Authorized(NamedTuple):
    """These keys may be used from now on, and no others. Before the first one there are no keys."""

    clients: Mapping[str, Grant]
    workers: Mapping[str, Grant]


class Malformed(NamedTuple):
    """Bytes came in that are no message."""

    peer: bytes
    frontend: bool
    error: ProtocolError
    address: str = ""


class Undelivered(NamedTuple):
    """An action could not be carried out: its peer is gone, or (`full`) takes no more."""

    action: ToClient | ToWorker
    full: bool


class Disconnected(NamedTuple):
    """Some worker's connection ended; ZeroMQ does not say whose."""


class Tick(NamedTuple):
    """Nothing happened but time."""


class Stop(NamedTuple):
    """Take no more requests, finish what is here within `grace` seconds."""

    grace: float


class ToClient(NamedTuple):
    """Send this to a client."""

    peer: bytes
    message: wire.ToClient
    payload: Payload = ()


class ToWorker(NamedTuple):
    """Send this to a worker."""

    peer: bytes
    message: wire.ToWorker
    payload: Payload = ()


Event: TypeAlias = FromClient | FromWorker | Authorized | Malformed | Undelivered | Disconnected | Tick | Stop
Action: TypeAlias = ToClient | ToWorker
