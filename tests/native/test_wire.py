"""The compiled code does what Python does in its place, for all bytes, and refuses what it cannot do."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.test_codec import ALL, MESSAGES
from tests.support.mutation import mutate
from zmq_offload import native
from zmq_offload.net import frames as zmtp_frames
from zmq_offload.protocol import messages

wire: Any = pytest.importorskip("zmq_offload.native.wire", reason="there was no C compiler")

CODECS = wire.Codecs(messages.VERSION, messages._USUAL)
USUAL = {cls for cls, _ in messages._USUAL.values()}


def in_python(frame: bytes) -> messages.Message | None:
    """What Python decodes, without compiled code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "_decode_usual", messages._unusual)
        try:
            return messages.decode(frame, ALL)
        except messages.ProtocolError:
            return None


def encoded_in_python(message: messages.Message) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "_encode_usual", messages._unusual)
        return messages.encode(message)


def test_the_messages_of_a_request_are_usual() -> None:
    assert {messages.Request, messages.Dispatch, messages.Done, messages.Result} <= USUAL


@given(MESSAGES)
def test_messages_are_encoded_and_decoded_alike(message: messages.Message) -> None:
    envelope = encoded_in_python(message)
    if type(message) in USUAL:
        assert CODECS.encode(message) == envelope
        decoded = CODECS.decode(envelope)
        assert decoded == message and type(decoded) is type(message)
    else:
        assert CODECS.encode(message) is None and CODECS.decode(envelope) is None


def test_a_message_of_many_bytes_is_left_to_python() -> None:
    long = messages.Error(b"s" * 16, 1, "INTERNAL", "x" * 5000)
    assert CODECS.encode(long) is None and CODECS.decode(encoded_in_python(long)) in (None, long)


@given(MESSAGES, st.integers(0, 2**32))
def test_changed_bytes_are_decoded_alike_or_left_to_python(message: messages.Message, seed: int) -> None:
    envelope = (mutate([messages.encode(message)], random.Random(seed)) or [b""])[0]
    found = CODECS.decode(envelope)
    assert found is None or (found == in_python(envelope) and type(found) is type(in_python(envelope)))


@given(st.binary(max_size=64), st.sampled_from(sorted(messages._USUAL)))
def test_any_bytes_are_decoded_alike_or_left_to_python(noise: bytes, code: int) -> None:
    fields = len(messages._USUAL[code][1])
    envelope = bytes((messages.VERSION, 0x91 + fields, code)) + noise
    found = CODECS.decode(envelope)
    assert found is None or found == in_python(envelope)


@pytest.mark.parametrize("field", [True, 1.0, None, 2**63, -(2**63) - 1, [1], (), bytearray(16)], ids=repr)
def test_a_field_of_another_kind_is_left_to_python(field: object) -> None:
    assert CODECS.encode(messages.Cancel(b"s" * 16, field)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("field", [True, 1.0, None, b"n", "1", 2**63, -1, [1]], ids=repr)
def test_a_value_that_a_field_cannot_have_is_left_to_python(field: object) -> None:
    assert CODECS.decode(bytes((4, 0x93, 2)) + msgpack.packb(b"s" * 16) + msgpack.packb(field)) is None


def test_other_objects_are_left_to_python() -> None:
    for other in (None, (), (b"s", 1), "text", messages.Key(b"s" * 16, 1), object()):
        assert CODECS.encode(other) is None
    for other in (None, "text", bytearray(b"\x04\x92\x02"), b"", b"\x04", b"\x04\x93", b"\x04\x93\xff", 7):
        assert CODECS.decode(other) is None


def test_the_text_of_the_last_message_is_used_again() -> None:
    """Its hash is known then."""
    first, second = (
        CODECS.decode(messages.encode(messages.Dispatch(b"s" * 16, number, 1, "détection", 1, 0))) for number in (1, 2)
    )
    assert first.model is second.model == "détection"


CUT = st.lists(st.integers(0, 400), max_size=8)


def split_all(split: Any, data: bytes, cuts: list[int], *limits: int) -> tuple[list[Any], int, list[Any]]:
    """Split data that comes in pieces, as `Peer.received` does."""
    most, room, turn = limits
    messages_, frames, at = [], [], 0  # type: ignore[var-annotated]
    for stop in sorted({min(cut, len(data)) for cut in (*cuts, len(data))}):
        at, frames = split(memoryview(bytearray(data)), at, stop, most, room, frames, messages_, turn)
    return messages_, at, frames


@given(
    st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=4), max_size=5),
    st.binary(max_size=12),
    CUT,
    st.integers(0, 300),
    st.integers(0, 5),
    st.integers(0, 4),
)
def test_frames_are_split_alike(
    whole: list[list[bytes]], noise: bytes, cuts: list[int], most: int, room: int, turn: int
) -> None:
    data = b"".join(buffer for frames in whole for buffer in zmtp_frames.encode(frames)) + noise
    assert split_all(wire.split, data, cuts, most, room, turn) == split_all(
        zmtp_frames._split, data, cuts, most, room, turn
    )


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_split_alike(data: bytes, room: int) -> None:
    assert split_all(wire.split, data, [], 2**40, room, 0) == split_all(zmtp_frames._split, data, [], 2**40, room, 0)


def test_a_length_past_all_memory_is_left_to_python() -> None:
    for size in (2**63 - 1, 2**63, 2**64 - 1):
        data = memoryview(bytearray(b"\x02" + size.to_bytes(8, "big") + b"x"))
        assert wire.split(data, 0, len(data), 2**62, 4, [], [], 0) == (0, [])


def appended(append: Any, frames: list[Any]) -> tuple[int, bytes, list[Any]]:
    buffers: list[Any] = [b"before"]
    return append(buffers, frames), b"".join(buffers), buffers


@given(st.lists(st.binary(max_size=600), max_size=20), st.sampled_from([0, 255, 256, 20_000]))
def test_messages_are_written_alike(frames: list[bytes], more: int) -> None:
    frames = [*frames, bytes(more)]
    count, written, _ = appended(zmtp_frames._append, frames)
    assert (
        appended(wire.append, frames)[:2]
        == appended(wire.append, list(map(memoryview, frames)))[:2]
        == (count, written)
    )


def test_only_short_messages_are_copied() -> None:
    long = memoryview(bytes(100_000))
    assert appended(wire.append, [b"envelope", long])[2][-1] is long
    assert len(appended(wire.append, [b"envelope", b"tensor"])[2]) == 2
    assert appended(wire.append, [])[0] == 0


def test_what_has_no_bytes_is_no_frame() -> None:
    for frames in ([1], ["text"], [b"x", None], 7):
        with pytest.raises(TypeError):
            wire.append([], frames)
    with pytest.raises(TypeError):
        wire.append((), [b"x"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        ((memoryview(b"ab"), 0, 2, 9, 9, [], [], 0, 0), TypeError),
        ((memoryview(b"ab"), 0, 3, 9, 9, [], [], 0), ValueError),
        ((memoryview(b"ab"), -1, 2, 9, 9, [], [], 0), ValueError),
        ((memoryview(b"ab"), "0", 2, 9, 9, [], [], 0), TypeError),
        ((memoryview(b"ab"), 0, 2, 2**70, 9, [], [], 0), OverflowError),
        ((memoryview(b"ab"), 0, 2, 9, 9, (), [], 0), TypeError),
        ((None, 0, 2, 9, 9, [], [], 0), TypeError),
    ],
)
def test_wrong_arguments_of_split(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        wire.split(*arguments)


@pytest.mark.parametrize(
    ("codecs", "error"),
    [
        ({200: (messages.Cancel, ())}, ValueError),
        ({-1: (messages.Cancel, ())}, ValueError),
        ({"1": (messages.Cancel, ())}, TypeError),
        ({1: messages.Cancel}, TypeError),
        ({1: (dict, ())}, TypeError),
        ({1: (messages.Cancel, [])}, TypeError),
        ({1: (messages.Cancel, (("i", 0, 1, False),) * 15)}, TypeError),
        ({1: (messages.Cancel, (("x", 0, 1, False),))}, ValueError),
        ({1: (messages.Cancel, (("i", 0, 2**64, False),))}, OverflowError),
        (dict.fromkeys(range(30), (messages.Cancel, ())), ValueError),
    ],
)
def test_wrong_codecs(codecs: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        wire.Codecs(4, codecs)


@pytest.mark.parametrize("value", ["0", "off"])
def test_it_can_be_switched_off(value: str) -> None:
    code = "from zmq_offload import native; print(native.wire)"
    environment = os.environ | {"ZMQ_OFFLOAD_NATIVE": value}
    said = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert said.stdout == "None\n"
    assert native.wire is wire or native.SWITCHED_OFF
