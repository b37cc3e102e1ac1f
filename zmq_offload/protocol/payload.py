"""What follows the envelope: a header frame and one raw frame a tensor, or a body.

The header is a msgpack array with `[name, datatype, shape]` for each tensor, in order. A tensor's frame is its
elements, row-major, little-endian, without padding; its length must agree with datatype and shape.
"""

from __future__ import annotations

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
    """`[header, frame, ...]` of named arrays. A frame is the array's own memory where that is contiguous and
    little-endian (no copy), else a copy of it.

    Raises InvalidArgument naming the tensor that cannot be sent.
    """
    pairs = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    if len(pairs) > limits.TENSORS:
        raise InvalidArgument(f"{len(pairs)} tensors in one message; the limit is {limits.TENSORS}")
    header = []
    frames: list[Any] = []
    for name, array in pairs:
        # "replace": a lone surrogate has no UTF-8; it is refused below, where msgpack meets it.
        if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= limits.NAME_BYTES:
            raise InvalidArgument(f"a tensor's name is a string of 1 to {limits.NAME_BYTES} bytes, not {name!r:.80}")
        try:
            datatype = datatype_of(array.dtype)
        except InvalidArgument as error:
            raise InvalidArgument(f"tensor {name!r}: {error.message}") from None
        if array.ndim > limits.RANK:
            raise InvalidArgument(f"tensor {name!r} has {array.ndim} dimensions; the limit is {limits.RANK}")
        wire = np.ascontiguousarray(array, dtype=DATATYPES[datatype])
        header.append((name, datatype, array.shape))
        # An empty array has no buffer to point at; a zero-dimensional one exports no byte view without reshape.
        frames.append(wire.reshape(-1).view(np.uint8).data if wire.size else b"")
    try:
        return [msgpack.packb(header), *frames]
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
        if not all(type(d) is int and 0 <= d < 2**40 for d in shape):
            raise ProtocolError(f"tensor {name!r}: {shown(shape)} is not a shape")
        names.add(name)
    return [(name, datatype, tuple(shape)) for name, datatype, shape in entries]


def decode_tensors(frames: Sequence[Any]) -> dict[str, Array]:
    """Named arrays that view the memory of `[header, frame, ...]`, without a copy. Raises ProtocolError."""
    if not frames:
        raise ProtocolError("the header is missing")
    header = decode_header(frames[0])
    if len(header) != len(frames) - 1:
        raise ProtocolError(f"the header names {len(header)} tensors, {len(frames) - 1} frames follow it")
    tensors = {}
    for (name, datatype, shape), frame in zip(header, frames[1:], strict=True):
        dtype = DATATYPES[datatype]
        memory = memoryview(frame)
        expected = math.prod(shape) * dtype.itemsize
        if memory.nbytes != expected:
            raise ProtocolError(
                f"tensor {name!r}: {datatype}{list(shape)} needs {expected} bytes, its frame has {memory.nbytes}"
            )
        try:
            tensors[name] = np.frombuffer(memory, dtype=dtype).reshape(shape)
        except ValueError:  # an extent of 0 makes no bytes of extents that NumPy cannot multiply
            raise ProtocolError(f"tensor {name!r}: {list(shape)} is too large a shape") from None
    return tensors


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
