"""Packets of TVM's RPC, and our frames within them."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.errors import OffloadError, ProtocolError, Unauthenticated
from zmq_offload.transports.tvmrpc import parcel, values, wire


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=20))
def test_frames_come_out_of_a_parcel_as_they_went_in(frames: list[bytes]) -> None:
    assert parcel.unpack(b"".join(parcel.pack(frames))) == frames


@given(st.binary(max_size=200))
def test_any_bytes_are_a_parcel_or_a_protocol_error(data: bytes) -> None:
    try:
        frames = parcel.unpack(data)
    except ProtocolError:
        return
    assert b"".join(parcel.pack(frames)) == data


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "of 0 bytes has no 0 frames"),
        (struct.pack("<IQ", 1, 5) + b"four", "a frame of 5 bytes does not end"),
        (struct.pack("<IQ", 1, 4) + b"fourX", "1 bytes follow the frames"),
    ],
)
def test_a_damaged_parcel_says_what_is_wrong(data: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        parcel.unpack(data)


@given(st.binary(max_size=200))
def test_bytes_of_a_call_and_of_its_answer_are_read_as_they_were_written(data: bytes) -> None:
    call = wire.call_with_bytes(7, len(data)) + data
    assert struct.unpack_from("<Q", call)[0] == len(call) - wire.LENGTH
    assert values.decode_values(call[wire.LENGTH + 12 :]) == [data]
    answer = wire.return_of_bytes(len(data)) + data
    assert struct.unpack_from("<Q", answer)[0] == len(answer) - wire.LENGTH
    assert wire.decode_bytes(answer[wire.LENGTH :]) == data


@given(st.lists(st.none() | st.text(max_size=20) | st.builds(values.Handle, st.integers(0, 2**64 - 1)), max_size=9))
def test_values_are_read_as_they_were_written(written: list[str | values.Handle | None]) -> None:
    assert values.decode_values(values.encode_values(written)) == written


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_an_error_of_ours(data: bytes) -> None:
    for body in (data, struct.pack("<i", wire.RETURN) + data, struct.pack("<ii", wire.EXCEPTION, 1) + data):
        with contextlib.suppress(OffloadError):
            wire.decode_bytes(body)


ARRAYS = st.builds(
    values.Tensor,
    st.integers(0, 2**63),
    st.sampled_from([np.dtype(name) for name in ("?", "u1", "<u2", "<u4", "<u8", "i1", "<i8", "<f2", "<f4", "<f8")]),
    st.lists(st.integers(0, 2**9), max_size=5).map(tuple),
)


@given(ARRAYS)
def test_an_array_on_the_server_is_read_as_it_was_written(array: values.Tensor) -> None:
    assert values.decode_values(values.encode_values((array,))) == [array]
    asked = wire.copy_from(array)
    assert asked[12:-8] == values.encode_tensor(array)
    assert struct.unpack_from("<Qi", asked) == (len(asked) - 8, wire.COPY_FROM)
    filled = wire.copy_to(array)
    assert struct.unpack_from("<Qi", filled) == (len(filled) - 8 + array.nbytes, wire.COPY_TO)


def test_arguments_are_those_that_a_client_of_tvm_sends() -> None:
    u8 = np.dtype("u1")
    arguments = (7, True, "s", b"b", values.Module(2), values.Reference(3), values.Device(), u8, None)
    expected = (
        struct.pack("<i", 9)
        + struct.pack("<iq", 1, 7)
        + struct.pack("<iq", 2, 1)
        + struct.pack("<iQ", 8, 1)
        + b"s"
        + struct.pack("<iQ", 9, 1)
        + b"b"
        + struct.pack("<iQ", 73, 2)
        + struct.pack("<iIQ", 64, 115, 3)
        + struct.pack("<iii", 6, 1, 0)
        + struct.pack("<iBBHi", 5, 1, 8, 1, 0)
        + struct.pack("<i", 0)
    )
    assert values.encode_values(arguments) == expected
    assert wire.system_call(wire.FREE, values.Handle(5)) == struct.pack("<QiiiQ", 20, 10, 1, 4, 5)
    assert wire.call(6, 1) == struct.pack("<QiQiiq", 28, 3, 6, 1, 1, 1)
    assert values.decode_values(struct.pack("<iiq", 1, 2, 1)) == [1]


def test_the_content_of_an_array_has_its_size() -> None:
    assert wire.decode_copied(struct.pack("<i", wire.COPIED) + b"abcd", 4) == b"abcd"
    assert wire.decode_copied(wire.exception("it is gone")[wire.LENGTH :], 4) == wire.Failed("it is gone")
    for body in (struct.pack("<i", wire.COPIED) + b"abc", wire.return_of_nothing()[wire.LENGTH :]):
        with pytest.raises(ProtocolError, match="is no array of 4 bytes"):
            wire.decode_copied(body, 4)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (struct.pack("<QiiiBBH", 1, 1, 0, -1, 2, 32, 1), "has -1 dimensions"),
        (struct.pack("<QiiiBBH17qQ", 1, 1, 0, 17, 2, 32, 1, *[1] * 17, 0), "has 17 dimensions; the limit is 16"),
        (struct.pack("<QiiiBBHqQ", 1, 1, 0, 1, 2, 32, 1, -3, 0), r"the shape \(-3,\)"),
        (struct.pack("<QiiiBBH2qQ", 1, 1, 0, 2, 2, 32, 1, 0, 2**62, 0), r"the shape \(0, 4611686018427387904\)"),
        (struct.pack("<QiiiBBHqQ", 2**64 - 1, 1, 0, 1, 2, 32, 1, 1, 1), "beyond all memory"),
        (struct.pack("<QiiiBBHqQ", 1, 1, 0, 1, 3, 64, 1, 3, 0), r"the datatype \(3, 64, 1\)"),
        (struct.pack("<QiiiBBHqQ", 1, 1, 0, 1, 2, 32, 4, 3, 0), r"the datatype \(2, 32, 4\)"),
    ],
)
def test_an_array_that_no_model_has_says_what_is_wrong(array: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        values.decode_values(struct.pack("<ii", 1, 7) + array)


def test_the_first_bytes_of_a_client_are_those_that_a_client_of_tvm_sends() -> None:
    assert wire.hello("board") == b"q\xf2\x0f\x00\x0c\x00\x00\x00client:board"
    assert wire.init() == b"\x15\0\0\0\0\0\0\0\x02\0\0\0\x05\0\0\0\0\0\0\x000.8.0\0\0\0\0"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "has 0 bytes; the least is 4"),
        (struct.pack("<i", 77), "code 77 is no answer"),
        (struct.pack("<ii", wire.RETURN, 0), "has no value"),
        (struct.pack("<ii", wire.RETURN, 2000), "has 2000 values"),
        (struct.pack("<iii", wire.RETURN, 1, 99), "of type 99"),
        (struct.pack("<iiiqB", wire.RETURN, 1, 1, 5, 0), "1 bytes follow the values"),
        (struct.pack("<iiiq", wire.RETURN, 1, 1, 5), "returned 5; it returns bytes"),
        (struct.pack("<iiiQ", wire.RETURN, 1, 9, 2**63), "ends within a value"),
    ],
)
def test_a_damaged_answer_says_what_is_wrong(body: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        wire.decode_bytes(body)


def test_an_exception_is_shown_by_its_last_line() -> None:
    failed = wire.decode_bytes(wire.exception("Traceback\n  File x\nValueError: it \x1b[31m failed\n")[wire.LENGTH :])
    assert isinstance(failed, wire.Failed)
    assert wire.shown(failed.text) == "ValueError: it \\x1b[31m failed"
    assert wire.session_failure("", "h:1").message.endswith("no reason given")


def test_a_greeting_says_whether_the_key_fits() -> None:
    wire.check_greeting(wire.MAGIC, "h:1", "k")
    with pytest.raises(Unauthenticated, match="another key than 'k'"):
        wire.check_greeting(wire.MAGIC + 2, "h:1", "k")
    with pytest.raises(ProtocolError, match="is not a TVM RPC server"):
        wire.check_greeting(wire.MAGIC + 1, "h:1", "k")
    assert wire.check_key_length(7, "h:1") == 7
    with pytest.raises(ProtocolError, match="would have 5000 bytes"):
        wire.check_key_length(5000, "h:1")
