"""Invariant: any bytes on any socket decode to a message that encodes to an equal one, or raise ProtocolError. Memory
stays within the limits."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.announcement import parse_models
from tests.support.mutation import mutate, nested_arrays, with_length
from zmq_offload.errors import InvalidArgument, ProtocolError
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import decode_body, decode_tensors, encode_tensors, sendable
from zmq_offload.protocol.tensors import DATATYPES

pytestmark = pytest.mark.usefixtures("compiled_or_not")

VERSION = bytes([wire.VERSION])
ALL = wire.FROM_CLIENT | wire.TO_CLIENT | wire.FROM_WORKER | wire.TO_WORKER

SESSIONS = st.binary(min_size=16, max_size=16)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "session": SESSIONS,
    "id": st.integers(0, 2**63 - 1),
    "model": st.text(min_size=1, max_size=limits.MODEL_NAME_BYTES),
    "version": st.integers(0, 2**31 - 1),
    "budget_us": st.integers(0, limits.BUDGET_US),
    "priority": st.integers(-limits.PRIORITY, limits.PRIORITY),
    "what": st.sampled_from(["models", "status"]),
    "queue_us": st.integers(0, 2**63 - 1),
    "compute_us": st.integers(0, 2**63 - 1),
    "broker_us": st.integers(0, 2**63 - 1),
    "code": st.text(min_size=1, max_size=64),
    "text": st.text(max_size=300),
    "ids": st.lists(st.integers(0, 2**63 - 1), max_size=limits.PING_IDS),
    "attempt": st.integers(0, 2**31 - 1),
    "name": st.text(min_size=1, max_size=100).filter(str.isprintable),
    "slots": st.integers(1, 65536),
    "signature": st.one_of(st.just(b""), st.binary(min_size=16, max_size=16)),
    "max_frame_bytes": st.integers(0, 2**63 - 1),
    "label": st.text(max_size=limits.MODEL_NAME_BYTES),
    "caller": st.text(max_size=limits.NAME_BYTES),
    "trace": st.binary(max_size=wire.TRACE_BYTES),
    "device": st.text(min_size=1, max_size=64).filter(str.isprintable),
    "restarts": st.integers(0, 2**63 - 1),
    "memory_bytes": st.integers(0, 2**63 - 1),
    "elsewhere": st.integers(-1, 2**31 - 1),
    "rows": st.integers(0, 2**63 - 1),
    "batch": st.integers(0, 2**63 - 1),
}
MESSAGES = st.one_of(
    [
        st.builds(lambda cls, values: cls(*values), st.just(cls), st.tuples(*(FIELDS[name] for name in cls._fields)))
        for cls in ALL
    ]
)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=30,
)
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=20),
    st.builds(
        lambda datatype, shape, seed: np.frombuffer(
            random.Random(seed).randbytes(int(np.prod(shape)) * DATATYPES[datatype].itemsize), DATATYPES[datatype]
        ).reshape(shape),
        st.sampled_from([name for name in DATATYPES if name != "BOOL"]),
        st.lists(st.integers(0, 6), max_size=4),
        st.integers(0, 1000),
    ),
    max_size=4,
)


def decodes_or_refuses(frames: list[bytes]) -> None:
    """Do with frames from outside all that the programs do with them."""
    try:
        message = wire.decode(frames[0], ALL)
    except ProtocolError:
        pass
    else:
        assert wire.decode(wire.encode(message), ALL) == message
    as_header = [with_length(frame) for frame in frames[1:2]] + frames[2:]
    for read, rest in (
        (decode_tensors, frames[1:]),
        (decode_tensors, as_header),
        (lambda rest: decode_body(rest, "a body"), frames[1:]),
        (parse_models, frames[1:]),
    ):
        with contextlib.suppress(ProtocolError):
            read(rest)


@given(MESSAGES)
def test_every_message_survives_a_round_trip(message: wire.Message) -> None:
    again = wire.decode(wire.encode(message), ALL)
    assert again == message
    assert type(again) is type(message)


@given(TENSORS)
def test_tensors_survive_a_round_trip(tensors: dict[str, Any]) -> None:
    again = decode_tensors([bytes(frame) for frame in encode_tensors(tensors)])
    assert list(again) == list(tensors)
    for name, array in tensors.items():
        assert (again[name].dtype, again[name].shape) == (array.dtype, array.shape)
        assert again[name].tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
@example([VERSION + nested_arrays(1000)])
@example([VERSION + b"\x93\x04" + nested_arrays(1000) + b"\xc0", b"\x91" + nested_arrays(1000)])
@example([b"", b"\x91\x93" + nested_arrays(1000) + b"\x01\x01", b""])
@example([b"", msgpack.packb([["x", "FP32", [0, 2**39, 2**39]]])])
@example([b"", b"\x91\x81\xa4name" + nested_arrays(1000)])
@example([b"", msgpack.packb([{"name": "m", "version": 1, "inputs": [{"name": "x", "datatype": [], "shape": []}]}])])
def test_any_bytes(frames: list[bytes]) -> None:
    decodes_or_refuses(frames)


@given(st.lists(DATA, max_size=8), DATA)
def test_any_msgpack(envelope: list[Any], body: Any) -> None:
    decodes_or_refuses([VERSION + msgpack.packb(envelope), msgpack.packb(body), b"1234"])


@given(MESSAGES, TENSORS, st.integers(0, 2**32))
def test_a_mutated_message(message: wire.Message, tensors: dict[str, Any], seed: int) -> None:
    frames = [wire.encode(message), *map(bytes, encode_tensors(tensors))]
    decodes_or_refuses(mutate(frames, random.Random(seed)))


@pytest.mark.parametrize("header", [b"\xdd\x00\x03\xff\xff", b"\xdf\x00\x03\xff\xff", b"\xdc\x40\x00"])
def test_announced_lengths_are_not_believed(header: bytes) -> None:
    """Nested arrays with false lengths would make msgpack allocate all of it, level by level."""
    tracemalloc.start()
    try:
        decodes_or_refuses([VERSION + header * 1000, (header * 1000).ljust(limits.HEADER_BYTES, b"\x01")])
        decodes_or_refuses([VERSION, (header * 1000).ljust(limits.BODY_BYTES, b"\x01")])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1100 * 8 * limits.BODY_ITEMS  # levels that msgpack follows, times the bytes of a pointer


def test_arrays_are_made_sendable_and_those_that_are_stay_themselves() -> None:
    plain, swapped = np.arange(6, dtype="<f4").reshape(2, 3), np.arange(6, dtype=">f4").reshape(2, 3).T
    made = sendable({"plain": plain, "swapped": swapped})
    assert made["plain"] is plain
    assert made["swapped"].flags.c_contiguous and made["swapped"].dtype == np.dtype("<f4")
    assert np.array_equal(made["swapped"], swapped)
    with pytest.raises(InvalidArgument, match="'text'"):
        sendable({"text": np.array(["a"])})
