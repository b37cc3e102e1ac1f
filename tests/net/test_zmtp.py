"""ZMTP without sockets: bytes in, messages out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.net.zmtp import HELLO, Broken, Peer, Refused, encode

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MOST = 1 << 20
INTERVAL = 5.0


def command(body: bytes) -> bytes:
    return bytes((4, len(body))) + body


def ready(kind: bytes = b"ROUTER") -> bytes:
    socket_type = b"\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return command(b"\x05READY" + socket_type + b"\x08Identity\0\0\0\0")


OPENING = GREETING + ready()


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return struct.pack("!BQ", flags | 2, len(body)) + body


def feed(peer: Peer, data: bytes, sizes: Sequence[int] = ()) -> list[list[bytes]]:
    """Let a peer receive bytes, cut into pieces of these sizes and a last one. Returns the messages."""
    messages: list[list[Any]] = []
    at = 0
    for size in (*sizes, len(data)):
        end = min(at + size, len(data))
        while at < end:
            room = peer.buffer()
            count = min(len(room), end - at)
            room[:count] = data[at : at + count]
            at += count
            messages += peer.received(count)
    return [[bytes(each) for each in message] for message in messages]


def opened(most: int = MOST, frames: int = 4) -> Peer:
    peer = Peer(most, frames, INTERVAL)
    assert feed(peer, OPENING) == [] and peer.is_ready
    peer.answers.clear()
    return peer


def refused(data: bytes, peer: Peer | None = None) -> str:
    with pytest.raises(Broken) as caught:
        feed(peer or opened(), data)
    return str(caught.value)


def test_the_handshake_is_that_of_a_dealer() -> None:
    peer = Peer(MOST, 4, INTERVAL)
    feed(peer, GREETING[:10])
    assert peer.answers == []
    feed(peer, GREETING[10:11])
    assert HELLO + b"".join(peer.answers) == GREETING
    feed(peer, GREETING[11:] + ready()[:-1])
    assert not peer.is_ready
    assert b"".join(peer.answers)[53:] == ready(b"DEALER")
    feed(peer, ready()[-1:])
    assert peer.is_ready


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "it does not speak ZMTP"),
        (b"\xff" + bytes(10), "it does not speak ZMTP"),
        (GREETING[:10] + b"\x01" + bytes(53), "it speaks ZMTP 1; use ZMTP 3"),
        (GREETING + frame(b"early"), "a message has more than 0 frames"),
        (GREETING + command(b"\x04PING\0\0"), "a command came before READY"),
        (GREETING + ready(b"PUB"), "it is a socket of type b'PUB'; a DEALER talks to a ROUTER"),
        (GREETING + command(b"\x05READY"), "it is a socket of type None"),
        (GREETING + command(b"\x05READY\x0bSocket-Type\0\0"), "a READY ends within a property"),
        (GREETING + command(b"\x05READY\x0bSocket-Type\0\0\0\x07ROUTER"), "a READY ends within a property"),
    ],
)
def test_another_protocol_ends_the_handshake(data: bytes, says: str) -> None:
    assert says in refused(data, Peer(MOST, 4, INTERVAL))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (GREETING.replace(b"NULL\0", b"CURVE"), "it has keys"),
        (GREETING + command(b"\x05ERROR\x03No!"), "it said 'No!'"),
    ],
)
def test_a_peer_that_lets_nobody_in_is_told_from_a_broken_one(data: bytes, says: str) -> None:
    peer = Peer(MOST, 4, INTERVAL)
    with pytest.raises(Refused, match=says):
        feed(peer, data)
    assert HELLO + peer.answers[0] == GREETING  # the specification wants the whole greeting sent


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (frame(b"", 8), "a frame has the flags 0x08"),
        (struct.pack("!BQ", 7, 0), "a frame has the flags 0x07"),
        (frame(b"", 5), "a frame has the flags 0x05"),
        (struct.pack("!BQ", 2, MOST + 1), f"a frame has {MOST + 1} bytes; the limit is {MOST}"),
        (struct.pack("!BQ", 2, 2**64 - 1), f"a frame has {2**64 - 1} bytes"),
        (struct.pack("!BQ", 6, 4097), "a frame has 4097 bytes; the limit is 4096"),
        (frame(b"", 1) * 4 + frame(b""), "a message has more than 4 frames"),
        (frame(b"", 1) * 4 + struct.pack("!BQ", 2, MOST), "a message has more than 4 frames"),
        (command(b"\x04PING\0"), "a PING has a time and at most 16 bytes"),
        (command(b"\x04PING\0\0" + bytes(17)), "a PING has a time and at most 16 bytes"),
    ],
)
def test_what_is_not_allowed_ends_the_connection(data: bytes, says: str) -> None:
    assert says in refused(data)


def test_a_frame_over_the_limit_is_refused_even_if_it_has_come() -> None:
    assert "a frame has 200 bytes; the limit is 100" in refused(frame(bytes(200)), opened(most=100))


def test_commands_come_between_the_frames_of_a_message() -> None:
    peer = opened()
    pings = command(b"\x04PING\0\x0aabc")
    unknown = command(b"\x09SUBSCRIBE")
    assert feed(peer, frame(b"a", 1) + pings + unknown + frame(b"b", 1) * 3 + pings) == []
    assert peer.answers == [command(b"\x04PONGabc")] * 2
    assert feed(opened(), frame(b"a") + frame(b"b") + command(b"\x04PONG")) == [[b"a"], [b"b"]]


def test_a_silent_peer_is_noticed() -> None:
    peer = opened()
    assert peer.tick() == command(b"\x04PING\0\x96")  # 15 s
    assert peer.tick() and peer.tick() and peer.tick() is None
    peer = opened()
    for _ in range(10):
        assert peer.tick() and peer.tick() and peer.tick()
        feed(peer, command(b"\x04PONG"))


@pytest.mark.parametrize(("tenths", "ticks"), [(0, 3), (50, 1), (75, 2), (150, 3), (10_000, 3)])
def test_a_peer_that_gives_a_shorter_time_is_gone_sooner(tenths: int, ticks: int) -> None:
    peer = opened()
    feed(peer, command(b"\x04PING" + tenths.to_bytes(2, "big")))
    for _ in range(ticks):
        assert peer.tick() is not None
    assert peer.tick() is None


SIZES = st.one_of(
    st.integers(0, 300),
    st.sampled_from((16 * 1024, 16 * 1024 + 1, 128 * 1024 - 9, 128 * 1024 - 8, 128 * 1024, 300_000)),
)
MESSAGES = st.lists(st.lists(SIZES, min_size=1, max_size=4), max_size=4)


@given(MESSAGES, st.lists(st.integers(1, 100_000), max_size=20))
def test_messages_survive_any_cut(sizes: list[list[int]], cuts: list[int]) -> None:
    messages = [[bytes((at + size) % 256 for at in range(3)) * (size // 3) for size in message] for message in sizes]
    stream = b"".join(
        b"".join(frame(body, at + 1 < len(message)) for at, body in enumerate(message)) for message in messages
    )
    assert b"".join(map(bytes, (each for message in messages for each in encode(message)))) == stream
    peer = Peer(MOST, 4, INTERVAL)
    assert feed(peer, OPENING + stream, cuts) == messages


@given(st.data())
def test_changed_bytes_end_in_a_clean_error(data: st.DataObject) -> None:
    stream = bytearray(OPENING + frame(b"a" * 300, 1) + frame(b"b") + command(b"\x04PING\0\0ab") + frame(b"c"))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    peer = Peer(MOST, 4, INTERVAL)
    with suppress(Broken):
        messages = feed(peer, bytes(stream), data.draw(st.lists(st.integers(1, 100), max_size=8)))
        assert all(0 < len(message) <= 4 for message in messages)
        assert sum(len(each) for message in messages for each in message) <= len(stream)
