"""Tensors as the frames in which they travel, without arrays: who passes them on needs their bytes only."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import (
    KEPT_HEADER_BYTES,
    KEPT_HEADERS,
    LENGTH_BYTES,
    Array,
    Buffer,
    decode_tensors,
    encode_header,
    encode_tensors,
    layout_of,
)
from zmq_offload.protocol.tensors import DType


class Place(NamedTuple):
    """Where a tensor is: frame 0 has the header and small tensors, each other frame a large one."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    frame: int
    start: int
    stop: int


class Layout(NamedTuple):
    """What a header says: the place of each tensor, and the sizes of all frames. `header` is with its length."""

    header: bytes
    places: tuple[Place, ...]
    sizes: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Dimension 0 of the first tensor, which is the batch of models that have one."""
        shape = self.places[0].shape if self.places else ()
        return shape[0] if shape else 1


class Packed(Mapping[str, Array]):
    """Tensors by name: an array is made of the frames when it is asked for. `frames` is [head, frame, ...]."""

    __slots__ = ("_arrays", "frames", "layout")

    def __init__(self, layout: Layout, frames: Sequence[Any]) -> None:
        self.layout = layout
        self.frames = frames
        self._arrays: dict[str, Array] | None = None

    def bytes_of(self, place: Place) -> memoryview:
        """The bytes of a tensor, in the memory of its frame."""
        return memoryview(self.frames[place.frame])[place.start : place.stop]

    def _decoded(self) -> dict[str, Array]:
        if self._arrays is None:
            self._arrays = decode_tensors(self.frames)
        return self._arrays

    def __getitem__(self, name: str) -> Array:
        return self._decoded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self.layout.places)


def pack(tensors: Mapping[str, Array]) -> Packed:
    """Arrays as frames. Large ones are views of the arrays' memory. Raises InvalidArgument for what cannot be sent."""
    if isinstance(tensors, Packed):
        return tensors
    layout = layout_for([(name, array.dtype, array.shape) for name, array in tensors.items()])
    return Packed(layout, encode_tensors(tensors))


def assemble(layout: Layout, tensors: Iterable[Buffer]) -> Packed:
    """The bytes of each tensor of a layout, in order, as frames. Large ones stay where they are."""
    if len(layout.sizes) == 1:  # all are small
        return Packed(layout, (b"".join((layout.header, *tensors)),))
    head: list[Buffer] = [layout.header]
    frames: list[Buffer] = [b""]
    for place, data in zip(layout.places, tensors, strict=True):
        (frames if place.frame else head).append(data)
    frames[0] = b"".join(head)
    return Packed(layout, frames)


def layout_for(tensors: Sequence[tuple[str, DType, tuple[int, ...]]]) -> Layout:
    """The layout of tensors with these names, dtypes and shapes. Raises InvalidArgument for what cannot be sent."""
    return described(encode_header(tuple(tensors))[0])


def unpack(frames: Sequence[Any]) -> Packed:
    """Tensors that came as frames; the head is bytes. Raises ProtocolError if they are not what the header says."""
    head = frames[0] if frames else b""
    at = LENGTH_BYTES + int.from_bytes(head[:LENGTH_BYTES], "big")
    if at <= KEPT_HEADER_BYTES and at <= len(head):
        found = _known(head[:at])
        if tuple(map(len, frames)) == found.sizes:
            return Packed(found, frames)
    decode_tensors(frames)  # a long header, or frames that do not fit, of which it says why
    return Packed(described(head[:at]), frames)


def described(header: bytes) -> Layout:
    """The layout that a header gives, which begins with its length. Raises ProtocolError."""
    return (_known if len(header) <= KEPT_HEADER_BYTES else _layout)(header)


def _layout(header: bytes) -> Layout:
    places, sizes = [], [len(header)]
    for name, dtype, shape, nbytes in layout_of(header[LENGTH_BYTES:]):
        if nbytes > limits.PACKED_BYTES:
            places.append(Place(name, dtype, shape, len(sizes), 0, nbytes))
            sizes.append(nbytes)
        else:
            places.append(Place(name, dtype, shape, 0, sizes[0], sizes[0] + nbytes))
            sizes[0] += nbytes
    return Layout(header, tuple(places), tuple(sizes))


_known = functools.lru_cache(KEPT_HEADERS)(_layout)
