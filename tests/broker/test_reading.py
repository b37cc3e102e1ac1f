"""From frames to messages, before the core sees them."""

from __future__ import annotations

import pytest

from broker.ports.reading import decode
from zmq_offload.errors import ProtocolError
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire

PING = wire.encode(wire.Ping(bytes(16), [1]))


def test_the_envelope_is_where_it_is_said_to_be() -> None:
    assert decode([b"peer", PING], 1, wire.FROM_CLIENT, named=False) == wire.Ping(bytes(16), [1])


@pytest.mark.parametrize(
    ("frames", "named", "says"),
    [
        ([], False, "no envelope"),
        ([PING] * (limits.FRAMES + 1), False, f"at most {limits.FRAMES} frames"),
        ([PING], True, "a routing id was set"),
        ([memoryview(bytearray(100_000))], False, "not 100000"),
    ],
)
def test_what_is_no_message_says_why(frames: list[bytes], named: bool, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        decode(frames, 0, wire.FROM_CLIENT, named=named)
