"""ZMTP without sockets: bytes in, messages out."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.net.frames import encode
from zmq_offload.net.sharedmemory.references import Reference, SharedFrame, take_out
from zmq_offload.net.zmtp import HELLO, Broken, Peer, Refused, Scratch

pytestmark = pytest.mark.usefixtures("compiled_or_not")

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MOST = 1 << 20
INTERVAL = 5.0


def command(body: bytes) -> bytes:
    return bytes((4, len(body))) + body


def ready(kind: bytes = b"ROUTER", identity: bytes = b"", more: bytes = b"") -> bytes:
    socket_type = b"\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return command(b"\x05READY" + socket_type + b"\x08Identity" + len(identity).to_bytes(4, "big") + identity + more)


OPENING = GREETING + ready()
PIECES = b"\x14X-Zmq-Offload-Pieces\0\0\0\x011"
"""The property of an end that takes pieces."""


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
    assert b"".join(peer.answers)[53:] == ready(b"DEALER", more=PIECES)
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
        (GREETING + ready(b"PUB"), "it is a socket of type b'PUB'; a DEALER talks to REP, DEALER, ROUTER"),
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


def test_a_frame_for_which_there_is_no_memory_ends_the_connection() -> None:
    size = 2**62
    assert f"there is no memory for a frame of {size} bytes" in refused(struct.pack("!BQ", 2, size), opened(most=size))


@pytest.mark.parametrize("kind", [b"DEALER", b"REQ", b"ROUTER"])
def test_a_router_talks_to_those_who_ask(kind: bytes) -> None:
    peer = Peer(MOST, 4, INTERVAL, b"ROUTER")
    feed(peer, GREETING + ready(kind, b"name", b"\x05X-One\0\0\0\x01a"))
    assert peer.is_ready and peer.identity == b"name"
    assert peer.properties == {b"socket-type": kind, b"identity": b"name", b"x-one": b"a"}
    assert b"".join(peer.answers).endswith(ready(b"ROUTER", more=PIECES))
    assert not peer.takes_pieces


@pytest.mark.parametrize("kind", [b"REP", b"PULL", b"SUB"])
def test_a_router_does_not_talk_to_others(kind: bytes) -> None:
    said = refused(GREETING + ready(kind), Peer(MOST, 4, INTERVAL, b"ROUTER"))
    assert said == f"it is a socket of type {kind!r}; a ROUTER talks to REQ, DEALER, ROUTER"


@pytest.mark.parametrize("size", [0, 1, 200, 1000])
def test_two_ends_tell_each_other_their_properties(size: int) -> None:
    ends = [
        Peer(MOST, 4, INTERVAL, b"ROUTER", sharer=Sharer({b"X-Long": b"x" * size})),
        Peer(MOST, 4, INTERVAL, sharer=Sharer({b"X-One": b"1", b"X-Two": b""})),
    ]
    data = [HELLO, HELLO]
    while any(data):
        for at in (0, 1):
            got, data[1 - at] = data[1 - at], b""
            if got:
                feed(ends[at], got)
            data[at] += b"".join(ends[at].answers)
            ends[at].answers.clear()
    router, dealer = ends
    assert router.is_ready and dealer.is_ready
    pieces = {b"x-zmq-offload-pieces": b"1"}
    assert router.properties == {b"socket-type": b"DEALER", b"identity": b"", b"x-one": b"1", b"x-two": b""} | pieces
    assert dealer.properties == {b"socket-type": b"ROUTER", b"identity": b"", b"x-long": b"x" * size} | pieces


def test_a_frame_over_the_limit_is_refused_even_if_it_has_come() -> None:
    assert "a frame has 200 bytes; the limit is 100" in refused(frame(bytes(200)), opened(most=100))


def test_commands_come_between_the_frames_of_a_message() -> None:
    peer = opened()
    pings = command(b"\x04PING\0\x0aabc")
    unknown = command(b"\x09SUBSCRIBE")
    assert feed(peer, frame(b"a", 1) + pings + unknown + frame(b"b", 1) * 3 + pings) == []
    assert peer.answers == [command(b"\x04PONGabc")] * 2
    assert feed(opened(), frame(b"a") + frame(b"b") + command(b"\x04PONG")) == [[b"a"], [b"b"]]


def test_a_silent_peer_is_asked_and_then_gone() -> None:
    ping = command(b"\x04PING\0\x96")  # 15 s
    peer = opened()
    assert [peer.tick() for _ in range(4)] == [b"", ping, ping, None]
    peer = opened()
    for _ in range(10):
        assert [peer.tick() for _ in range(3)] == [b"", ping, ping]
        feed(peer, command(b"\x04PONG"))


def test_a_peer_that_is_heard_is_not_asked() -> None:
    peer = opened()
    for _ in range(10):
        assert peer.tick() == b""
        feed(peer, command(b"\x04PING\0\0"))


@pytest.mark.parametrize(("tenths", "ticks"), [(0, 3), (50, 1), (75, 2), (150, 3), (10_000, 3)])
def test_a_peer_that_gives_a_shorter_time_is_gone_sooner(tenths: int, ticks: int) -> None:
    peer = opened()
    feed(peer, command(b"\x04PING" + tenths.to_bytes(2, "big")))
    said = [peer.tick() for _ in range(ticks + 1)]
    assert said[-1] is None and said[-2], "it is asked before it is gone"
    assert None not in said[:-1]


SIZES = st.one_of(
    st.integers(0, 300),
    st.sampled_from((16 * 1024, 16 * 1024 + 1, 256 * 1024 - 9, 256 * 1024 - 8, 256 * 1024, 300_000)),
)
MESSAGES = st.lists(st.lists(SIZES, min_size=1, max_size=4), max_size=4)


def stream_of(sizes: list[list[int]]) -> tuple[list[list[bytes]], bytes]:
    messages = [[bytes((at + size) % 256 for at in range(3)) * (size // 3) for size in message] for message in sizes]
    return messages, b"".join(
        b"".join(frame(body, at + 1 < len(message)) for at, body in enumerate(message)) for message in messages
    )


@given(MESSAGES, st.lists(st.integers(1, 100_000), max_size=20))
def test_messages_survive_any_cut(sizes: list[list[int]], cuts: list[int]) -> None:
    messages, stream = stream_of(sizes)
    assert b"".join(map(bytes, (each for message in messages for each in encode(message)))) == stream
    peer = Peer(MOST, 4, INTERVAL)
    assert feed(peer, OPENING + stream, cuts) == messages


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 500))
def test_a_turn_returns_only_so_many_messages(sizes: list[int], turn: int, cut: int) -> None:
    peer = Peer(MOST, 4, INTERVAL, turn=turn)
    feed(peer, OPENING)
    data = b"".join(frame(bytes(size)) for size in sizes)
    got: list[int] = []
    while data or peer.has_more:
        room = peer.buffer()
        count = 0
        if not peer.has_more:
            count = min(len(room), len(data), cut)
            room[:count], data = data[:count], data[count:]
        messages = peer.received(count)
        assert len(messages) <= turn
        got += [len(message[0]) for message in messages]
    assert got == sizes


@given(st.lists(st.tuples(MESSAGES, st.lists(st.integers(1, 100_000), max_size=8)), min_size=2, max_size=3))
def test_connections_that_share_a_scratch_do_not_mix(each: list[tuple[list[list[int]], list[int]]]) -> None:
    scratch = Scratch()
    peers = [Peer(MOST, 4, INTERVAL, scratch=scratch) for _ in each]
    expected, pieces = [], []
    for sizes, cuts in each:
        messages, stream = stream_of(sizes)
        expected.append(messages)
        data, cut = OPENING + stream, []
        for size in (*cuts, len(data)):
            cut.append(data[:size])
            data = data[size:]
        pieces.append(cut)
    got: list[list[list[bytes]]] = [[] for _ in each]
    for turn in range(max(map(len, pieces))):
        for at, peer in enumerate(peers):
            if turn < len(pieces[at]):
                got[at] += feed(peer, pieces[at][turn])
    assert got == expected


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


# --- references to shared memory ------------------------------------------------------------------------------------

OFFER = b"\x12X-Zmq-Offload-Host\0\0\0\x03yes"
REFERENCE = Reference(7, 3, bytes(16), 5, 9, 4096, 100)


class Sharer:
    """Offers `mine`, takes the offer `yes`, and proves by names."""

    def __init__(self, properties: Mapping[bytes, bytes]) -> None:
        self.properties = properties

    def proof(self, told: Mapping[bytes, bytes], kind: bytes) -> bytes | None:
        return b"yes read by " + kind if told.get(b"x-zmq-offload-host") == b"yes" else None

    def is_proof(self, given: bytes, kind: bytes) -> bool:
        return given == b"mine read from " + kind


SHARES = command(b"\x06SHARESmine read from DEALER")
OWN = command(b"\x06SHARESyes read by DEALER")


def sharing_peer() -> Peer:
    return Peer(MOST, 4, INTERVAL, sharer=Sharer({b"X-Zmq-Offload-Host": b"mine"}))


def offered() -> bytes:
    kind = b"\x0bSocket-Type\0\0\0\x06ROUTER"
    return GREETING + command(b"\x05READY" + kind + OFFER)


def message(frames: Sequence[Any]) -> bytes:
    return b"".join(encode(frames))


def fed(peer: Peer, data: bytes) -> list[list[Any]]:
    peer.buffer()[: len(data)] = data
    return peer.received(len(data))


def test_references_pass_between_ends_that_offered_and_proved() -> None:
    shared = take_out([b"\x03envelope", b"head", SharedFrame(REFERENCE), b"last"])
    peer = sharing_peer()
    (frames,) = fed(peer, offered() + SHARES + message(shared))
    assert b"X-Zmq-Offload-Host\0\0\0\x04mine" in b"".join(peer.answers)
    assert peer.answers[-1] == OWN
    assert peer.shares
    assert [frames[0], frames[1], frames[2].reference, frames[3]] == [b"\x03envelope", b"head", REFERENCE, b"last"]


@pytest.mark.parametrize(
    "said", [offered(), offered() + command(b"\x06SHARES"), offered() + OWN, OPENING, OPENING + SHARES]
)
def test_references_pass_between_no_others(said: bytes) -> None:
    shared = take_out([b"\x03envelope", b"head", SharedFrame(REFERENCE), b"last"])
    peer = sharing_peer()
    assert fed(peer, said + message(shared)) == [[bytes(frame) for frame in shared]]
    assert not peer.shares


def test_an_end_that_does_not_share_says_and_takes_nothing_of_it() -> None:
    peer = Peer(MOST, 4, INTERVAL)
    fed(peer, offered() + SHARES)
    assert not peer.shares
    assert b"X-Zmq-Offload-Host" not in b"".join(peer.answers)
    assert OWN not in peer.answers


def test_a_wrong_table_ends_the_connection() -> None:
    for wrong in (
        [b"\x83"],
        [b"\x83", b"table"],
        take_out([b"\x03", b"", SharedFrame(REFERENCE._replace(nbytes=MOST + 1))]),
    ):
        peer = sharing_peer()
        feed(peer, offered() + SHARES)
        peer.turn = 1
        with pytest.raises(Broken):
            feed(peer, message(wrong) * 2)
        assert not peer.has_more, "nobody asks for more of a connection that ended"


def test_a_long_frame_may_be_in_a_message_with_references() -> None:
    peer = sharing_peer()
    fed(peer, offered() + SHARES)
    long = bytes(200_000)
    data = message(take_out([b"\x03", b"head", long, SharedFrame(REFERENCE)]))
    found: list[list[Any]] = []
    while data:
        room = peer.buffer()
        count = min(len(room), len(data))
        room[:count] = data[:count]
        data = data[count:]
        found += peer.received(count)
    assert [len(frame) for frame in found[0]] == [1, 4, 200_000, 100]
    assert fed(peer, message([b""])) == [[b""]]
    whole = message([b"\x83" * 20_000])  # too long for an envelope, and so in memory of its own
    assert fed(peer, whole[:100]) == []
    room = peer.buffer()
    room[:] = whole[100:]
    assert [bytes(frame) for frame in peer.received(len(room))[0]] == [b"\x83" * 20_000]
