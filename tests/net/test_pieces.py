"""Long messages in pieces, as bytes."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from tests.net.test_zmtp import GREETING, PIECES, frame, ready
from zmq_offload.net.frames import append, encode
from zmq_offload.net.pieces import LONGEST_PIECE_BYTES, PIECE, PIECE_BYTES, Leaving
from zmq_offload.net.zmtp import Broken, Peer

MOST = 1 << 20


def peer(turn: int = 0, most: int = MOST) -> Peer:
    made = Peer(most, 4, 1.0, turn=turn)
    assert fed(made, GREETING + ready(more=PIECES)) == [] and made.takes_pieces
    return made


def fed(peer: Peer, data: bytes, step: int = 1 << 30) -> list[list[bytes]]:
    """The messages of bytes that come `step` at a time."""
    messages = []
    at = 0
    while at < len(data):
        room = peer.buffer()
        part = data[at : at + min(step, len(room))]
        room[: len(part)] = part
        at += len(part)
        came = peer.received(len(part))
        while peer.has_more:
            peer.buffer()
            came += peer.received(0)
        messages += came
    return [[bytes(each) for each in message] for message in messages]


def piece(body: bytes) -> bytes:
    return struct.pack("!BQ", PIECE | 2, len(body)) + body


def stream_of(*messages: list[bytes]) -> bytes:
    return b"".join(each for message in messages for each in encode(message))


@pytest.mark.parametrize("step", [7, 1000, 1 << 30])
@pytest.mark.parametrize("length", [1, 9, 100, 30_000])
def test_a_stream_may_be_cut_anywhere(step: int, length: int) -> None:
    long = [
        [b"one", b"x" * 500, b""],
        [b"two", b"y" * (20_000 if length > 9 else 200)],
        [b"control"],
        [b"three", b"z" * 300],
    ]
    data = stream_of(*long)
    cut = [data[at : at + length] for at in range(0, len(data), length)]
    short = [[b"short", b"%d" % number] for number in range(len(cut))]
    sent = b"".join(piece(part) + stream_of(message) for part, message in zip(cut, short, strict=True))
    got = fed(peer(), sent, step)
    assert [message for message in got if message[0] == b"short"] == short
    assert [message for message in got if message[0] != b"short"] == long


def test_a_long_frame_is_received_into_memory_of_its_own() -> None:
    receiver = peer()
    data = stream_of([b"long", np.arange(100_000, dtype=np.uint8).tobytes()])
    assert fed(receiver, piece(data[:50_000])) == []
    assert receiver.is_amid_pieces and len(receiver.buffer()) < PIECE_BYTES
    (message,) = fed(receiver, piece(data[50_000:]), 30_000)
    assert message[1] == np.arange(100_000, dtype=np.uint8).tobytes()
    assert not receiver.is_amid_pieces


def test_a_turn_ends_within_pieces_too() -> None:
    receiver = peer(turn=2)
    data = piece(stream_of(*[[b"%d" % number, b""] for number in range(5)])) + stream_of([b"6"], [b"7"])
    receiver.buffer()[: len(data)] = data
    first = receiver.received(len(data))
    assert len(first) == 5 and receiver.has_more
    receiver.buffer()
    assert receiver.received(0) == [[b"6"], [b"7"]] and not receiver.has_more
    data = piece(b"\0\xff") + piece(b"x") * 40
    receiver.buffer()[: len(data)] = data
    assert receiver.received(len(data)) == [] and receiver.has_more


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (piece(b""), "a piece has 0 bytes"),
        (piece(b"a" * ((1 << 20) + 1)), "a piece has 1048577 bytes"),
        (piece(b"\4\1a"), "a frame in pieces has the flags 0x04"),
        (piece(piece(b"a")), "a frame in pieces has the flags 0x0a"),
        (piece(struct.pack("!BQ", 2, MOST + 1)), "a frame has 1048577 bytes; the limit is 1048576"),
        (piece(frame(b"", 1) * 5), "a message has more than 4 frames"),
        (piece(frame(b"") * 65), "more than 64 messages end in a piece"),
        (piece(frame(b"") * 64 + frame(b"x" * 100_000)), "more than 64 messages end in a piece"),
        (bytes((PIECE, 1, 0)), "a frame has the flags 0x08"),
    ],
)
def test_what_is_not_a_stream_of_messages_ends_the_connection(data: bytes, says: str) -> None:
    with pytest.raises(Broken, match=says):
        fed(peer(), data)


def test_a_frame_for_which_there_is_no_memory_ends_the_connection() -> None:
    with pytest.raises(Broken, match="no memory for a frame"):
        fed(peer(most=1 << 60), piece(struct.pack("!BQ", 2, 1 << 60)))


def test_there_are_no_pieces_before_the_handshake_is_over() -> None:
    with pytest.raises(Broken, match="flags 0x0a"):
        fed(Peer(MOST, 4, 1.0), GREETING + piece(b"a"))


def test_a_message_that_ends_in_memory_of_its_own_counts_too() -> None:
    data = piece(frame(b"") * 64 + frame(b"x" * 100_000))
    with pytest.raises(Broken, match="more than 64 messages end in a piece"):
        fed(peer(), data, 30_000)


def test_no_more_messages_end_in_a_piece_than_one_end_takes_at_once() -> None:
    leaving = Leaving()
    messages = [[b"%d" % number] for number in range(200)]
    for message in messages:
        buffers: list[bytes | memoryview] = []
        leaving.put(buffers, append(buffers, message))
    pieces = []
    while leaving.messages:
        pieces.append(b"".join(leaving.cut(0.0)[0]))
    assert len(pieces) == 4
    assert fed(peer(), b"".join(pieces)) == messages


def test_a_closed_connection_keeps_nothing() -> None:
    receiver = peer()
    fed(receiver, piece(stream_of([b"long", b"x" * 100_000])[:50_000]))
    receiver.forget()
    assert not receiver.is_amid_pieces


def test_what_is_cut_is_the_stream() -> None:
    random.seed(1)
    leaving = Leaving()
    messages = [[b"%d" % number, bytes(random.randrange(600_000))] for number in range(20)]
    for message in messages:
        buffers: list[bytes | memoryview] = []
        leaving.put(buffers, append(buffers, message))
    assert leaving.messages == 20 and leaving.waiting_bytes == leaving.put_bytes
    sent = b""
    while leaving.messages:
        buffers, size = leaving.cut(0.0)
        assert size == sum(map(len, buffers)) <= PIECE_BYTES + 9
        sent += b"".join(buffers)
    assert leaving.waiting_bytes == 0
    assert fed(peer(), sent) == messages


def cuts(leaving: Leaving, times: list[float]) -> list[int]:
    """KiB of pieces that are cut off at these times, without their heads."""
    return [(leaving.cut(now)[1] - 9) >> 10 for now in times]


def waiting(nbytes: int) -> Leaving:
    leaving = Leaving()
    buffers: list[bytes | memoryview] = []
    leaving.put(buffers, append(buffers, [b"", bytes(nbytes)]))
    return leaving


def test_pieces_have_as_many_bytes_as_the_connection_takes_in_a_moment() -> None:
    leaving = waiting(60 << 20)
    assert LONGEST_PIECE_BYTES == 1024 << 10
    assert cuts(leaving, [0.0, 0.001, 0.002, 0.004, 0.008]) == [512, 1024, 1024, 1024, 1024], "a fast one"
    assert cuts(leaving, [0.015, 0.023, 0.031]) == [1024, 512, 512], "it became slower"
    assert cuts(leaving, [1.0, 2.0]) == [512, 512]
    assert cuts(leaving, [2.0, 2.002, 2.003]) == [512, 1024, 1024], "two at the same time say nothing"


def test_a_pause_between_messages_says_nothing_of_the_connection() -> None:
    leaving = waiting(2 << 20)
    assert cuts(leaving, [0.0, 0.001, 0.002]) == [512, 1024, 512]
    buffers: list[bytes | memoryview] = []
    leaving.put(buffers, append(buffers, [b"", bytes(4 << 20)]))
    assert cuts(leaving, [9.0, 9.001]) == [1024, 1024], "what was known before still holds"
