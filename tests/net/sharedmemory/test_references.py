"""Tables of references: what goes out comes in, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.net.sharedmemory.layout import COUNT, MOST_BYTES
from zmq_offload.net.sharedmemory.references import SHARED, BadTable, Frame, Reference, SharedFrame, put_in, take_out
from zmq_offload.protocol import limits

_MOST = 2**20

_references = st.builds(
    Reference,
    st.integers(1, 2**31 - 1),
    st.integers(0, 2**31 - 1),
    st.binary(min_size=16, max_size=16),
    st.integers(0, COUNT - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, MOST_BYTES - _MOST),
    st.integers(1, _MOST),
)
_frames = st.one_of(st.binary(max_size=20), st.builds(SharedFrame, _references))

GOOD = Reference(7, 3, bytes(16), 5, 9, 4096, 100)


def _plain(frames: list[Frame]) -> list[bytes | memoryview | Reference]:
    return [frame.reference if isinstance(frame, SharedFrame) else frame for frame in frames]


@given(st.lists(_frames, max_size=5), _references, st.lists(_frames, max_size=5))
def test_a_message_comes_in_as_it_went_out(before: list[Frame], one: Reference, after: list[Frame]) -> None:
    frames = [*before, SharedFrame(one), *after]
    message: list[Frame] = [b"\x03envelope", b"head", *frames]
    sent = take_out(message)
    assert sent[0] == b"\x83envelope"
    assert _plain(put_in(sent, _MOST)) == _plain(message)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_any_bytes_are_a_message_or_refused(frames: list[bytes]) -> None:
    try:
        message = put_in(list(frames), _MOST)
    except BadTable:
        return
    assert len(frames) - 1 < len(message) <= limits.FRAMES


@given(st.lists(st.tuples(st.integers(0, 6), _references), min_size=1, max_size=4))
def test_positions_are_in_order_and_within_the_message(entries: list[tuple[int, Reference]]) -> None:
    table = b"".join(_entry(position, reference) for position, reference in entries)
    frames: list[bytes | memoryview] = [b"\x83", b"head", b"a", b"b", table]
    positions = [position for position, _ in entries]
    whole = 4 + len(entries)
    if positions == sorted(set(positions)) and positions[0] >= 2 and positions[-1] < whole:
        message = put_in(frames, _MOST)
        assert [i for i, frame in enumerate(message) if isinstance(frame, SharedFrame)] == positions
        assert [frame for frame in message if not isinstance(frame, SharedFrame)] == [b"\x03", b"head", b"a", b"b"]
    else:
        with pytest.raises(BadTable, match="in order"):
            put_in(frames, _MOST)


def _entry(position: int, reference: Reference) -> bytes:
    sent = take_out([b"\x03"] + [b""] * (position - 1) + [SharedFrame(reference)])
    entry = bytes(sent[-1])
    return position.to_bytes(2, "little") + entry[2:]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (GOOD._replace(pid=0), "process 0"),
        (GOOD._replace(pid=2**31), "process"),
        (GOOD._replace(fd=2**31), "descriptor"),
        (GOOD._replace(cell=COUNT), "cell"),
        (GOOD._replace(start=MOST_BYTES), "in no arena"),
        (GOOD._replace(start=2**64 - 1), "in no arena"),
        (GOOD._replace(nbytes=0), "0 bytes"),
        (GOOD._replace(nbytes=_MOST + 1), "the limit is"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(wrong: Reference, why: str) -> None:
    with pytest.raises(BadTable, match=why):
        put_in(take_out([b"\x03", b"head", SharedFrame(wrong)]), _MOST)


def test_a_table_is_whole_and_a_message_has_no_more_frames_than_any() -> None:
    entry = _entry(2, GOOD)
    for frames in ([entry], [b"\x83", b"", entry[:-1]], [b"\x83", b"", b""]):
        with pytest.raises(BadTable, match="a table of references"):
            put_in(list(frames), _MOST)
    with pytest.raises(BadTable, match="more than"):
        put_in([b"\x83", b"", entry * (limits.FRAMES - 1)], _MOST)


def test_a_shared_frame_has_the_length_of_its_bytes() -> None:
    assert len(SharedFrame(GOOD)) == 100
    assert take_out([b"\x03", b"head", SharedFrame(GOOD)])[0] == bytes((3 | SHARED,))
