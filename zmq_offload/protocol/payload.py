"""What follows the envelope: a header frame and one raw frame a tensor, or a body.

The header is a msgpack array with `[name, datatype, shape]` for each tensor, in order. A tensor's frame is its
elements, row-major, little-endian, without padding; its length must agree with datatype and shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from zmq_offload.errors import InvalidArgument, ProtocolError
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import shown, unpack
from zmq_offload.protocol.tensors import DATATYPES, datatype_of

Array = np.ndarray[Any, Any]


def encode_tensors(tensors: Mapping[str, Array] | Iterable[tuple[str, Array]]) -> list[Any]:
    """`[header, frame, ...]` of named arrays. A frame is a view of the array's own memory where that is contiguous and
    little-endian (no copy), else of a copy of it.

    Raises InvalidArgument naming the tensor that cannot be sent.
    """
    pairs = list(tensors.items() if type(tensors) is dict or isinstance(tensors, Mapping) else tensors)
    header, dtypes = _encode_header(tuple([(name, array.dtype, array.shape) for name, array in pairs]))
    frames: list[Any] = [header]
    for (_, array), dtype in zip(pairs, dtypes, strict=True):
        # An empty array has no buffer to point at.
        frames.append(np.ascontiguousarray(array, dtype).data.cast("B") if array.size else b"")
    return frames


_SIGNATURES = 256
"""Headers that are remembered: a model's are the same in every request."""


@functools.lru_cache(_SIGNATURES)
def _encode_header(
    entries: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...],
) -> tuple[bytes, list[np.dtype[Any]]]:
    """The header frame, and each tensor's dtype on the wire."""
    if len(entries) > limits.TENSORS:
        raise InvalidArgument(f"{len(entries)} tensors in one message; the limit is {limits.TENSORS}")
    header = []
    for name, dtype, shape in entries:
        # "replace": a lone surrogate has no UTF-8; it is refused below, where msgpack meets it.
        if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= limits.NAME_BYTES:
            raise InvalidArgument(f"a tensor's name is a string of 1 to {limits.NAME_BYTES} bytes, not {name!r:.80}")
        try:
            datatype = datatype_of(dtype)
        except InvalidArgument as error:
            raise InvalidArgument(f"tensor {name!r}: {error.message}") from None
        if len(shape) > limits.RANK:
            raise InvalidArgument(f"tensor {name!r} has {len(shape)} dimensions; the limit is {limits.RANK}")
        header.append((name, datatype, shape))
    try:
        return msgpack.packb(header), [DATATYPES[datatype] for _, datatype, _ in header]
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"a tensor's name is not valid Unicode: {error.object!r:.80}") from None


def decode_header(frame: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    """`(name, datatype, shape)` of each tensor. Raises ProtocolError."""
    data = memoryview(frame)
    if data.nbytes > limits.HEADER_BYTES:
        raise ProtocolError(f"a header has at most {limits.HEADER_BYTES} bytes, not {data.nbytes}")
    entries = unpack(data, "a header", limits.TENSORS)
    if type(entries) is not list or len(entries) > limits.TENSORS:
        raise ProtocolError(f"a header is an array of at most {limits.TENSORS} tensors")
    names = set()
    for entry in entries:
        if type(entry) is not list or len(entry) != 3:
            raise ProtocolError("a header's entry is an array of name, datatype and shape")
        name, datatype, shape = entry
        if type(name) is not str or not 0 < len(name) <= limits.NAME_BYTES or name in names:
            raise ProtocolError(f"a tensor's name is a string of its own, not {shown(name)}")
        if type(datatype) is not str or datatype not in DATATYPES:
            raise ProtocolError(f"tensor {name!r}: datatype {shown(datatype)} is not one of {', '.join(DATATYPES)}")
        if type(shape) is not list or len(shape) > limits.RANK:
            raise ProtocolError(f"tensor {name!r}: a shape is an array of at most {limits.RANK} extents")
        if not all(type(d) is int and 0 <= d < limits.EXTENT for d in shape):
            raise ProtocolError(f"tensor {name!r}: {shown(shape)} is not a shape")
        names.add(name)
    return [(name, datatype, tuple(shape)) for name, datatype, shape in entries]


def decode_tensors(frames: Sequence[Any]) -> dict[str, Array]:
    """Named arrays that view the memory of `[header, frame, ...]` (bytes or `zmq.Frame`), without a copy.

    Raises ProtocolError.
    """
    if not frames:
        raise ProtocolError("the header is missing")
    header = frames[0]
    layout = _remembered_layout(header) if type(header) is bytes and len(header) <= _SHORT else _layout(header)
    if len(layout) != len(frames) - 1:
        raise ProtocolError(f"the header names {len(layout)} tensors, {len(frames) - 1} frames follow it")
    tensors = {}
    for (name, dtype, shape, nbytes), frame in zip(layout, frames[1:], strict=True):
        if len(frame) != nbytes:
            raise ProtocolError(
                f"tensor {name!r}: {datatype_of(dtype)}{list(shape)} needs {nbytes} bytes, its frame has {len(frame)}"
            )
        try:
            tensors[name] = np.ndarray(shape, dtype, frame)
        except ValueError:  # an extent of 0 makes no bytes of extents that NumPy cannot multiply
            raise ProtocolError(f"tensor {name!r}: {list(shape)} is too large a shape") from None
    return tensors


_SHORT = 1024
"""Bytes of a header that is worth remembering; what strangers send must not fill the memory."""


def _layout(header: Any) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]:
    """Name, dtype, shape and bytes of each tensor."""
    return tuple(
        (name, dtype := DATATYPES[datatype], shape, math.prod(shape) * dtype.itemsize)
        for name, datatype, shape in decode_header(header)
    )


_remembered_layout = functools.lru_cache(_SIGNATURES)(_layout)


def encode_body(body: Any) -> bytes:
    """The second frame of an Announce or an Answer."""
    return msgpack.packb(body)  # type: ignore[no-any-return]


def decode_body(frames: Sequence[Any], what: str) -> Any:
    """The content of `[body]`. Raises ProtocolError."""
    if len(frames) != 1:
        raise ProtocolError(f"{what} has one frame after its envelope, not {len(frames)}")
    data = memoryview(frames[0])
    if data.nbytes > limits.BODY_BYTES:
        raise ProtocolError(f"the body of {what} has at most {limits.BODY_BYTES} bytes, not {data.nbytes}")
    return unpack(data, f"the body of {what}", limits.BODY_ITEMS)
