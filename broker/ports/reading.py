"""From frames to the events of the core. Pure."""

from __future__ import annotations

from typing import Any, TypeVar

from zmq_offload.errors import ProtocolError
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire

_M = TypeVar("_M")


def decode(frames: list[Any], at: int, expected: frozenset[type[_M]], *, named: bool) -> _M:
    """The message whose envelope is the frame `at`. `named`: whether the peer gave itself a routing id."""
    if len(frames) <= at:
        raise ProtocolError("the message has no envelope")
    if len(frames) - at > limits.FRAMES:
        raise ProtocolError(f"a message has at most {limits.FRAMES} frames")
    if named:
        raise ProtocolError("a routing id was set; do not set a routing id, the broker assigns it")
    envelope = frames[at]
    if type(envelope) is not bytes:  # only frames that are too long for an envelope have memory of their own
        raise ProtocolError(f"an envelope has 2 to {limits.ENVELOPE_BYTES} bytes, not {len(envelope)}")
    return wire.decode(envelope, expected)
