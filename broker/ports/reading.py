"""From frames to the events of the core. Pure."""

from __future__ import annotations

from typing import Any, TypeVar

from zmq_offload.errors import ProtocolError
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire

_FRAMES = limits.FRAMES
_M = TypeVar("_M")


def decode(frames: list[Any], at: int, expected: frozenset[type[_M]], *, named: bool) -> _M:
    """The message whose envelope is the frame `at`. `named`: whether the peer gave itself a routing id."""
    if at < len(frames) <= at + _FRAMES and not named and type(envelope := frames[at]) is bytes:
        return wire.decode(envelope, expected)
    raise ProtocolError(_fault(frames, at, named))


def _fault(frames: list[Any], at: int, named: bool) -> str:
    if len(frames) <= at:
        return "the message has no envelope"
    if len(frames) - at > _FRAMES:
        return f"a message has at most {_FRAMES} frames"
    if named:
        return "a routing id was set; do not set a routing id, the broker assigns it"
    # Only frames that are too long for an envelope have memory of their own.
    return f"an envelope has 2 to {limits.ENVELOPE_BYTES} bytes, not {len(frames[at])}"
