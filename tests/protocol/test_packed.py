"""Tensors as frames: the same as arrays, and refused alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.errors import InvalidArgument, ProtocolError
from zmq_offload.protocol.packed import pack, unpack
from zmq_offload.protocol.payload import Array, decode_tensors, encode_tensors
from zmq_offload.protocol.tensors import DATATYPES

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60).filter(str.strip)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple) | st.just((40, 40))
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(DATATYPES)), SHAPES), max_size=40)


@given(TENSORS)
def test_packed_tensors_are_the_arrays(described: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    arrays = {
        name: np.arange(int(np.prod(shape))).astype(DATATYPES[datatype]).reshape(shape)
        for name, (datatype, shape) in described.items()
    }
    sent = pack(arrays)
    came = unpack([bytes(frame) for frame in sent.frames])
    assert sent.layout == came.layout and pack(came) is came
    assert came.layout.sizes == tuple(map(len, encode_tensors(arrays)))
    assert list(came) == list(arrays) and len(came) == len(arrays)
    for place in came.layout.places:
        array = arrays[place.name]
        assert came.bytes_of(place) == array.tobytes()
        assert (came[place.name].dtype, came[place.name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(came[place.name], array)
    first = next(iter(arrays.values()), np.array(0))
    assert came.layout.rows == (first.shape[0] if first.shape else 1)


@given(st.binary(max_size=80), st.lists(st.binary(max_size=20), max_size=2), st.integers(0, 60))
def test_frames_are_refused_as_arrays_of_them_are(noise: bytes, more: list[bytes], cut: int) -> None:
    good = encode_tensors({"x": np.arange(3, dtype="f4"), "y": np.zeros(2000, "i4")})
    head, large = bytes(good[0]), good[1]
    for frames in ([noise, *more], [*good, *more], [head[:cut], large], [head + noise, large], more):
        assert end_of(unpack, frames) == end_of(decode_tensors, frames)


def end_of(read: Callable[[Sequence[Any]], Mapping[str, Array]], frames: Sequence[Any]) -> list[str] | str:
    """The names that it finds, or its error."""
    try:
        return list(read(frames))
    except ProtocolError as error:
        return error.message


def test_a_long_header_is_read_though_its_layout_is_not_kept() -> None:
    arrays = {f"{number:0500}": np.full(2, number) for number in range(3)}
    came = unpack(encode_tensors(arrays))
    assert len(came.layout.header) > 1024
    assert {name: array.tolist() for name, array in came.items()} == {name: [n, n] for n, name in enumerate(arrays)}


def test_a_tensor_that_cannot_be_sent() -> None:
    with pytest.raises(InvalidArgument, match="tensor name"):
        pack({"": np.zeros(1)})
