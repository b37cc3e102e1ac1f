"""Properties of the HTTP/2 connection: any division of the bytes is the same, and no bytes break it."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.http2_peer import REQUEST, SETTINGS, Peer, block, data, headers, settings, split
from zmq_offload.gateway.http2 import frames
from zmq_offload.gateway.http2.connection import Connection
from zmq_offload.gateway.http2.errors import ErrorCode
from zmq_offload.gateway.http2.events import Data
from zmq_offload.gateway.http2.frames import PREFACE, frame
from zmq_offload.gateway.http2.settings import Limits

WHOLE = block(REQUEST)
CONVERSATION = b"".join(
    [
        PREFACE,
        settings(window=100, frame=20_000),
        frame(frames.HEADERS, 0, 1, WHOLE[:5]),
        frame(frames.CONTINUATION, frames.END_HEADERS, 1, WHOLE[5:]),
        frame(frames.DATA, frames.PADDED, 1, b"\4abcdef\0\0\0\0"),
        headers(3),
        data(3, bytes(range(256)) * 3),
        frame(200, 1, 3, b"unknown"),
        frames.window_update(3, 7),
        data(1, b"", end=True),
        frame(frames.PING, 0, 0, b"12345678"),
        frames.reset(3, ErrorCode.CANCEL),
        headers(5, [*REQUEST, ("content-length", "4")]),
        data(5, b"four"),
        headers(5, [("x", "y")], end=True),
        headers(7, [("no", "method")]),
        data(7, b"ignored", end=True),
        data(9, b"fatal"),
    ]
)


def run(pieces: list[bytes], directly: bool = False) -> tuple[list[object], bytes]:
    """The events, with the data of a stream joined, and what is sent."""
    connection = Connection(lambda head: head, Limits())
    seen: list[object] = []
    joined: dict[int, bytearray] = {}
    for piece in pieces:
        while piece:
            target = connection.arriving() if directly else None
            taken = min(target[1], len(piece)) if target else len(piece)
            if target:
                joined.setdefault(target[0], bytearray()).extend(piece[:taken])
                events = connection.arrived(taken)
            else:
                events = connection.receive(memoryview(piece))
            for event in events:
                if isinstance(event, Data):
                    joined.setdefault(event.stream, bytearray()).extend(event.data)
                    seen += [("ended", event.stream)] * event.ended
                else:
                    seen.append(event)
            piece = piece[taken:]
    return [*seen, joined], b"".join(connection.take())


UNDIVIDED = run([CONVERSATION])


@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=40), st.booleans())
def test_any_division_of_the_bytes_gives_the_same_events(cuts, directly):
    cuts = sorted({0, *cuts, len(CONVERSATION)})
    pieces = [CONVERSATION[a:b] for a, b in pairwise(cuts)]
    assert run(pieces, directly) == UNDIVIDED


def test_single_bytes_give_the_same_events():
    assert run([bytes([byte]) for byte in CONVERSATION]) == UNDIVIDED
    assert run([bytes([byte]) for byte in CONVERSATION], directly=True) == UNDIVIDED


@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_damaged_bytes_break_nothing(chance, changes):
    wire = bytearray(CONVERSATION)
    for _ in range(changes):
        place = chance.randrange(len(PREFACE), len(wire))
        action = chance.randrange(3)
        if action == 0:
            wire[place] = chance.randrange(256)
        elif action == 1:
            del wire[place : place + chance.randrange(20)]
            wire += bytes(10)
        else:
            wire[place:place] = chance.randbytes(chance.randrange(20))
    split(run([bytes(wire)])[1])


def held(connection: Connection[object]) -> int:
    """Bytes that a connection keeps of what its peer sent."""
    blocks = sum(map(len, connection._decoder._remembered))
    return (
        len(connection._partial)
        + len(connection._block[2])
        + blocks
        + connection._decoder._decoder.header_table._current_size
    )


def test_random_frames_raise_nothing_and_are_not_kept():
    limits = Limits(streams=10, header_block=4096, idle_frames=10**6, resets=10**6)
    failures = 0
    for seed in range(600):
        chance = random.Random(zlib.crc32(b"%d" % seed))
        peer = Peer(limits)
        for _ in range(20):
            kind, flags = chance.randrange(11), chance.choice((0, 1, 4, 5, 8, 13, 0x24, 0x2C, 255))
            payload = chance.choice((WHOLE, chance.randbytes(chance.choice((0, 4, 5, 6, 8, 300))), bytes(3000)))
            peer.send(frame(kind, flags, chance.choice((0, 1, 1, 3, 5, 6)), payload))
            assert held(peer.connection) < 20_000 and peer.connection.streams <= 10
        peer.frames()
        failures += peer.connection.failed
    assert failures > 200


@given(st.binary(max_size=300))
def test_any_header_block_is_decoded_or_refused(wire):
    peer = Peer()
    peer.send(frame(frames.HEADERS, frames.END_HEADERS, 1, wire), SETTINGS)
    peer.frames()


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=5),
    st.lists(st.tuples(st.sampled_from(("stream", "connection", "settings")), st.integers(1, 200)), max_size=30),
)
def test_the_windows_of_the_peer_are_kept_and_used(sizes, steps):
    """Never more is sent than the peer allows, and never less than it allows and we have."""
    peer = Peer(first=settings(window=0))
    window, initial, room = 0, 0, 65_535
    payload = bytes(i % 251 for i in range(sum(sizes)))
    peer.send(headers(1, end=True))
    start = 0
    for size in sizes:
        peer.connection.data(1, [payload[start : start + size]])
        start += size
    received = b""
    for step, amount in steps:
        if step == "stream":
            peer.send(frames.window_update(1, amount))
            window += amount
        elif step == "connection":
            peer.send(frames.window_update(0, amount))
            room += amount
        else:
            peer.send(settings(window=amount))
            window, initial = window + amount - initial, amount
        new = b"".join(f.payload for f in peer.frames() if f.kind == frames.DATA)
        received += new
        window -= len(new)
        room -= len(new)
        assert not new or (window >= 0 and room >= 0)
        assert received == payload or min(window, room) <= 0
        assert payload.startswith(received)
        assert peer.connection.all_held == peer.connection.held(1) == len(payload) - len(received)
    peer.connection.reset(1, ErrorCode.CANCEL)
    assert peer.connection.all_held == 0
