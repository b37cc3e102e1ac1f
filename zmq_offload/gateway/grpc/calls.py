"""gRPC calls, apart from how they travel: messages are bytes, without their length prefix and compression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Buffer, Buffers, Cancel
from zmq_offload.net.grants import Grant


@dataclass(slots=True)
class Context:
    """Who calls, the seconds that the client's deadline leaves (None: it has none), and the metadata.

    Each message of a stream finds in `timeout` what is left then.
    """

    grant: Grant
    timeout: float | None
    metadata: Mapping[str, str]


Reply: TypeAlias = "Callable[[Buffers | OffloadError], None]"
"""Takes the one reply of a unary call: the parts of its message, or an error."""

Unary: TypeAlias = "Callable[[Buffer, Context, Reply], Cancel | None]"
"""Answers a unary call, at once or later. What it returns is called if the client cancels before the reply.

The message belongs to the call: its memory is not used again.
"""


class Writer(Protocol):
    """The messages of a streaming call to its client."""

    def send(self, message: Buffers) -> None:
        """Send a message, after those sent before."""

    def close(self, error: OffloadError | None = None) -> None:
        """End the call, after all messages. Nothing may be sent afterwards."""

    def pause(self) -> None:
        """Take no further messages of the client, until `resume`."""

    def resume(self) -> None:
        """Take messages again."""


class Stream(Protocol):
    """A streaming call's messages from its client."""

    def message(self, data: Buffer) -> None:
        """A message arrived."""

    def half_closed(self) -> None:
        """The client sends no more messages."""

    def canceled(self) -> None:
        """The client, or its connection, is gone. The writer takes nothing any more."""


@dataclass(frozen=True, slots=True)
class Streaming:
    """A method whose calls have any number of messages each way."""

    begin: Callable[[Context, Writer], Stream]


Methods: TypeAlias = "Mapping[str, Unary | Streaming]"
"""Methods by their path, such as "/inference.GRPCInferenceService/ModelInfer"."""
