"""Messages and payloads survive a round trip, and errors name what is wrong."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from tests.support.mutation import with_length
from zmq_offload.errors import InvalidArgument, ProtocolError
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import decode_body, decode_tensors, encode_tensors

SESSION = bytes(range(16))
BASE64 = "AAECAwQFBgcICQoLDA0ODw=="
"""SESSION as text: msgspec would take it for bytes."""
ALL = wire.FROM_CLIENT | wire.TO_CLIENT | wire.FROM_WORKER | wire.TO_WORKER

MESSAGES = [
    wire.Request(SESSION, 1, "ocr", 0, 1_000_000, 0),
    wire.Cancel(SESSION, 1),
    wire.Query(SESSION, 2, "models"),
    wire.Ping(SESSION, [1, 2]),
    wire.Result(SESSION, 1, 3, 10, 20, 30),
    wire.Error(SESSION, 1, "NOT_FOUND", "no such model"),
    wire.Answer(SESSION, 2),
    wire.Pong(SESSION, []),
    wire.Dispatch(SESSION, 1, 2, "ocr", 3, 999),
    wire.Revoke(SESSION, 1, 2),
    wire.Identify(),
    wire.Probe(),
    wire.Farewell(),
    wire.Returned("ocr"),
    wire.Announce("host-1", 2),
    wire.Heartbeat(5, 2),
    wire.Done(SESSION, 1, 2, 20),
    wire.Failed(SESSION, 1, 2, "INTERNAL", "it broke"),
    wire.Goodbye(),
]


def test_there_is_an_example_of_every_message() -> None:
    assert {type(message) for message in MESSAGES} == set(wire.CODES) == ALL


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_survives_a_round_trip(message: wire.Message) -> None:
    again = wire.decode(wire.encode(message), ALL)
    assert again == message
    assert type(again) is type(message)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_may_be_written_in_a_longer_way(message: wire.Message) -> None:
    """A peer need not choose msgpack's shortest form of a length or of the code."""
    short = wire.encode(message)
    count, code, fields = short[1] - 0x90, short[2], short[3:]
    for begin in (b"\xdc" + count.to_bytes(2, "big"), b"\xdd" + count.to_bytes(4, "big")):
        for number in (bytes([code]), b"\xcc" + bytes([code]), b"\xcd" + code.to_bytes(2, "big")):
            again = wire.decode(short[:1] + begin + number + fields, ALL)
            assert again == message
            assert type(again) is type(message)


def test_a_model_may_be_named_by_a_string_of_another_class() -> None:
    message = wire.Query(SESSION, 1, np.str_("models"))
    assert wire.encode(message) == wire.encode(wire.Query(SESSION, 1, "models"))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_for_another_socket_is_refused(message: wire.Message) -> None:
    with pytest.raises(ProtocolError, match="unexpected"):
        wire.decode(wire.encode(message), ALL - {type(message)})


def envelope(*fields: object) -> bytes:
    return bytes([wire.VERSION]) + msgpack.packb(fields)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"", "2 to 8192 bytes, not 0"),
        (b"\x04", "not 1"),
        (b"\x01" + msgpack.packb([4, SESSION, []]), "protocol version 1 is not supported"),
        (b"\x04\xc1", "is not msgpack"),
        (b"\x04" + b"\x91" * 5000, "is not msgpack"),
        (b"\x04\xdd\xff\xff\xff\xff", "is not msgpack"),
        (b"\x04" + b"x" * limits.ENVELOPE_BYTES, "bytes, not 8193"),
        (envelope(), "begins with the message's code"),
        (envelope("1"), "begins with the message's code"),
        (envelope(True), "begins with the message's code"),
        (envelope(99), "code 99"),
        (envelope(2, SESSION), "Cancel has 2 fields, not 1"),
        (envelope(2, SESSION[:15], 1), "'session'"),
        (envelope(2, SESSION, -1), "'id'"),
        (envelope(2, SESSION, 2**63), "'id'"),
        (envelope(2, SESSION, True), "'id'"),
        (envelope(1, SESSION, 1, "m", 0, 1, 101, b"", 1, "", b"", ""), "'priority'"),
        (envelope(1, SESSION, 1, "", 0, 1, 0, b"", 1, "", b"", ""), "'model'"),
        (envelope(1, SESSION, 1, "m" * 129, 0, 1, 0, b"", 1, "", b"", ""), "'model'"),
        (envelope(1, SESSION, 1, "m", 0, limits.BUDGET_US + 1, 0, b"", 1, "", b"", ""), "'budget_us'"),
        (envelope(1, SESSION, 1, "m", 0, 1, 0, b"x", 1, "", b"", ""), "'signature'"),
        (envelope(1, SESSION, 1, "m", 0, 1, 0, b"", -1, "", b"", ""), "'max_frame_bytes'"),
        (envelope(1, SESSION, 1, "m", 0, 1, 0), "Request has 11 fields, not 6"),
        (envelope(3, SESSION, 1, "secrets"), "'what'"),
        (envelope(4, SESSION, [1] * 600), "'ids'"),
        (envelope(4, SESSION, [-1]), "'ids'"),
        (envelope(49, "w", 0, 1, "cpu", 0), "'slots'"),
        (envelope(49, "w\n", 1, 1, "cpu", 0), "'name'"),
        (envelope(49, "w", 1, 1, "c\n", 0), "'device'"),
        (envelope(1, SESSION, 1, "m", 0, 1, 0, b"", 1, "l" * 129, b"", ""), "'label'"),
        (envelope(1, SESSION, 1, "m", 0, 1, 0, b"", 1, "", b"t" * 26, ""), "'trace'"),
        (envelope(51, SESSION, 1, 1, 1, -1, 1), "'rows'"),
        (envelope(2, BASE64, 1), "'session'"),
        (envelope(1, SESSION, 1, "m", 0, 1, 0, BASE64, 1, "", b"", ""), "'signature'"),
        (envelope(2, SESSION, 1, 2), "Cancel has 2 fields, not 3"),
        (envelope(2, SESSION, 1.0), "'id'"),
    ],
)
def test_bytes_that_are_not_a_message_are_refused(frame: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        wire.decode(frame, ALL)


def test_an_error_about_a_request_names_it() -> None:
    with pytest.raises(ProtocolError) as caught:
        wire.decode(envelope(1, SESSION, 7, "m", 0, 1, 1000, b"", 1, "", b"", ""), ALL)
    assert caught.value.key == (SESSION, 7)
    with pytest.raises(ProtocolError) as caught:
        wire.decode(envelope(1, SESSION, -7, "m", 0, 1, 1000), ALL)
    assert caught.value.key is None


# --- tensors ------------------------------------------------------------------------------------------------

ARRAYS = {
    "a": np.arange(6, dtype="f4").reshape(2, 3),
    "scalar": np.float64(3.5).reshape(()),
    "empty": np.zeros((0, 4), dtype="i8"),
    "flags": np.array([True, False]),
    "half": np.array([1.5, np.nan, np.inf], dtype="f2"),
    "long": np.arange(limits.PACKED_BYTES // 4 + 1, dtype="f4"),
    "last": np.arange(limits.PACKED_BYTES // 4, dtype="f4"),
}


def test_tensors_survive_a_round_trip() -> None:
    frames = encode_tensors(ARRAYS)
    assert len(frames) == 2, "only one tensor is not small"
    again = decode_tensors([bytes(frame) for frame in frames])
    assert list(again) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert again[name].dtype == array.dtype
        assert again[name].shape == array.shape
        np.testing.assert_array_equal(again[name], array)


def test_a_contiguous_array_is_sent_from_its_own_memory() -> None:
    array = np.arange(2000, dtype="f4")
    frames = encode_tensors({"x": array})
    assert np.shares_memory(np.frombuffer(frames[1], "f4"), array)


def test_a_big_endian_or_strided_array_is_converted_for_the_wire() -> None:
    rng = np.random.default_rng(0)
    small = (np.arange(6, dtype=">f4"), np.arange(12, dtype="f4")[::2], np.asfortranarray(rng.random((2, 3))))
    large = (np.arange(6000, dtype=">f4"), np.arange(12000, dtype="f4")[::2], np.asfortranarray(rng.random((50, 30))))
    for array in (*small, *large):
        frames = encode_tensors({"x": array})
        np.testing.assert_array_equal(decode_tensors([bytes(f) for f in frames])["x"], array)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"x": np.array(["text"])}, "tensor 'x': datatype <U4 cannot be sent"),
        ({"x": np.array([1j])}, "complex128 cannot be sent"),
        ({"x": np.array([None])}, "object cannot be sent"),
        ({"": np.zeros(1)}, "name"),
        ({"n" * 513: np.zeros(1)}, "name"),
        ({"\ud800": np.zeros(1)}, "Unicode"),
        ({3: np.zeros(1)}, "name"),
        ({"x": np.zeros((1,) * 17)}, "17 dimensions"),
        ({str(n): np.zeros(1) for n in range(257)}, "257 tensors"),
    ],
)
def test_a_tensor_that_cannot_be_sent_is_named(inputs: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        encode_tensors(inputs)


def header(*entries: object, packed: bytes = b"") -> bytes:
    return with_length(msgpack.packb(entries)) + packed


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "header is missing"),
        ([b""], "a header of 0 bytes does not end in its frame of 0"),
        ([b"\0\0\0\1"], "a header of 1 bytes does not end in its frame of 4"),
        ([b"\xff" * 8], "a header of 4294967295 bytes does not end"),
        ([with_length(b"\xc1")], "is not msgpack"),
        ([with_length(msgpack.packb({}))], "a header is an array"),
        ([header(("x", "FP32"))], "array of name, datatype and shape"),
        ([header(("x", "FP32", [2]))], r"'x': FP32\[2\] needs 8 bytes, 0 are left in its frame"),
        ([header(("x", "FP32", [2]), packed=b"1234")], r"'x': FP32\[2\] needs 8 bytes, 4 are left in its frame"),
        ([header(("x", "FP32", [1]), packed=b"12345")], "1 bytes and 0 frames more than"),
        ([header(), b"1234"], "0 bytes and 1 frames more than"),
        ([header(("x", "FP32", [2000]))], "tensor 'x' is missing: 0 frames follow"),
        ([header(("x", "FP32", [2000])), b"1234"], r"'x': FP32\[2000\] needs 8000 bytes, its frame has 4"),
        ([header(("x", "FP32", [0, 2**39, 2**39]))], "too large a shape"),
        ([header(("x", "float", [1])), b"1234"], "datatype 'float' is not one of BOOL"),
        ([header(("x", ["FP32"], [1])), b"1234"], "datatype"),
        ([header(("x", "FP32", [-1])), b"1234"], "is not a shape"),
        ([header(("x", "FP32", [1.0])), b"1234"], "is not a shape"),
        ([header(("x", "FP32", [2**62, 4])), b""], "is not a shape"),
        ([header(("x", "FP32", [1] * 17)), b"1234"], "at most 16 extents"),
        ([header(("x", "FP32", [1]), ("x", "FP32", [1])), b"1234", b"1234"], "a string of its own"),
        ([header((5, "FP32", [1])), b"1234"], "a string of its own"),
        ([header(("é" * 257, "FP32", [1]), packed=b"1234")], "a string of its own"),
        ([with_length(b"x" * (limits.HEADER_BYTES + 1))], "a header has at most"),
    ],
)
def test_frames_that_are_not_a_payload_are_refused(frames: list[bytes], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        decode_tensors(frames)


def test_a_shape_that_multiplies_past_the_frame_is_refused_without_allocating() -> None:
    for frames in ([header(("x", "FP64", [2**39] * 16)), b""], [header(("x", "FP64", [2**39] * 16))]):
        with pytest.raises(ProtocolError, match=r"needs|missing"):
            decode_tensors(frames)


def test_a_body_is_one_bounded_frame() -> None:
    assert decode_body([msgpack.packb([1])], "an Answer") == [1]
    for frames in ([], [b"\x90", b"\x90"], [b"\xc1"], [b"\x90" * (limits.BODY_BYTES + 1)]):
        with pytest.raises(ProtocolError):
            decode_body(frames, "an Answer")


def test_a_worker_reads_the_fields_of_a_dispatch_without_a_message() -> None:
    message = wire.Dispatch(SESSION, 300, 1, "ocr", 3, 999)
    frame = wire.encode(message)
    assert wire.read_dispatch(frame) == (33, *message)
    other = wire.encode(wire.Revoke(SESSION, 1, 1))
    for left in (b"", other, frame[:-1], frame + b"\0", wire.encode(wire.Dispatch(SESSION, 1, 1, "", 3, 999))):
        assert wire.read_dispatch(left) is None


def test_a_done_of_fields_is_the_one_of_a_message() -> None:
    assert wire.encode_done(SESSION, 300, 1, 20, 2, 3) == wire.encode(wire.Done(SESSION, 300, 1, 20, 2, 3))
