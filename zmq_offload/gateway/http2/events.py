"""What happens on a connection. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.http2.errors import ErrorCode

Head = TypeVar("Head")


@dataclass(frozen=True, slots=True)
class Begun(Generic[Head]):
    """A request's head arrived. `ended`: there is nothing after it."""

    stream: int
    head: Head
    ended: bool


class Data(NamedTuple):
    """Data arrived, which is valid until the next call of the connection. `ended`: it is the last."""

    stream: int
    data: Buffer
    ended: bool


class Reset(NamedTuple):
    """A stream that had begun ended early: its client canceled, or broke a rule. Nothing can be sent on it."""

    stream: int
    code: ErrorCode | int


class Drained(NamedTuple):
    """All data of a stream that flow control had held back is sent, and so are its trailers, if there are any yet."""

    stream: int


class Failed(NamedTuple):
    """The connection broke a rule. It is to be closed when what `take` returns is sent."""

    code: ErrorCode
    reason: str


Event: TypeAlias = "Begun[Head] | Data | Reset | Drained | Failed"
