"""Put faults into messages, for the fuzzing tests."""

from __future__ import annotations

import random


def nested_arrays(levels: int) -> bytes:
    """msgpack of an array nested `levels` deep; recursive code fails on enough of them."""
    return b"\x91" * levels + b"\x01"


def with_length(header: bytes) -> bytes:
    """A header as its frame has it: after its length."""
    return len(header).to_bytes(4, "big") + header


def mutate(frames: list[bytes], chance: random.Random) -> list[bytes]:
    """`frames` with one to four faults."""
    frames = [*frames] or [b""]
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(frames))
        frames[at : at + 1] = chance.choice(_FAULTS)(frames[at], chance)
        frames = frames or [b""]
    return frames


def noise(chance: random.Random) -> list[bytes]:
    """Frames of random bytes."""
    return [chance.randbytes(chance.choice((0, 1, 2, 16, 60, 300))) for _ in range(chance.randint(1, 4))]


def _flip(frame: bytes, chance: random.Random) -> list[bytes]:
    if not frame:
        return [b"\x00"]
    at = chance.randrange(len(frame))
    return [frame[:at] + bytes([frame[at] ^ (1 << chance.randrange(8))]) + frame[at + 1 :]]


def _cut(frame: bytes, chance: random.Random) -> list[bytes]:
    return [frame[: chance.randint(0, len(frame))]]


def _insert(frame: bytes, chance: random.Random) -> list[bytes]:
    at = chance.randint(0, len(frame))
    piece = chance.choice(
        (b"\xc0", b"\xdd\xff\xff\xff\xff", b"\xdf\x00\xff\xff\xff", nested_arrays(600), chance.randbytes(8))
    )
    return [frame[:at] + piece + frame[at:]]


def _number(frame: bytes, chance: random.Random) -> list[bytes]:
    """Replace a byte by one that msgpack reads as another type."""
    if not frame:
        return [b"\xcf" + b"\xff" * 8]
    at = chance.randrange(len(frame))
    return [frame[:at] + bytes([chance.randrange(0x80, 0x100)]) + frame[at + 1 :]]


_FAULTS = (
    _flip,
    _flip,
    _cut,
    _insert,
    _number,
    lambda frame, chance: [],
    lambda frame, chance: [frame, frame],
    lambda frame, chance: [chance.randbytes(len(frame))],
)
