"""The frames after the envelope: a head frame and a frame for each large tensor, or one body frame.

The head frame has the header's length (four bytes, big-endian), the header, and the small tensors. The header is a
msgpack array with `[name, datatype, shape]` for each tensor, in order. A tensor's bytes are its elements, row-major,
little-endian, without padding. A tensor of at most `limits.PACKED_BYTES` is small: a frame of its own, which four
sockets send and four receive on the way there and back, would cost more than the copy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgpack
import numpy as np
import numpy.typing as npt

from zmq_offload.errors import InvalidArgument, ProtocolError
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import shown, unpack
from zmq_offload.protocol.tensors import DATATYPES, DType, datatype_of

Array: TypeAlias = npt.NDArray[Any]
Buffer: TypeAlias = "bytes | bytearray | memoryview"


def encode_tensors(tensors: Mapping[str, Array] | Iterable[tuple[str, Array]]) -> list[bytes | memoryview]:
    """Encode named arrays as `[head, frame, ...]`.

    A frame is a view of the array's own memory if that is contiguous and little-endian, and of a copy otherwise. Raises
    InvalidArgument, which names the tensor that cannot be sent.
    """
    if type(tensors) is dict or isinstance(tensors, Mapping):
        pairs: Collection[tuple[str, Array]] = tensors.items()
    else:
        pairs = list(tensors)
    head, dtypes = encode_header(tuple([(name, array.dtype, array.shape) for name, array in pairs]))
    packed = [head]
    frames: list[bytes | memoryview] = []
    for (_, array), dtype in zip(pairs, dtypes):  # noqa: B905  (strict costs a tenth of the call)
        if array.nbytes <= _PACKED:
            packed.append(array.tobytes() if array.dtype is dtype else array.astype(dtype).tobytes())
        else:
            frames.append(np.ascontiguousarray(array, dtype).data.cast("B"))
    return [b"".join(packed), *frames]


def sendable(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Named arrays as any protocol can send them: contiguous and little-endian, each the array itself if it is so.

    Raises InvalidArgument, which names the tensor that cannot be sent.
    """
    _, dtypes = encode_header(tuple([(name, array.dtype, array.shape) for name, array in tensors.items()]))
    return {
        name: np.asarray(array, dtype, order="C") for (name, array), dtype in zip(tensors.items(), dtypes, strict=True)
    }


_PACKED = limits.PACKED_BYTES
LENGTH_BYTES = 4
"""Bytes before the header."""

KEPT_HEADERS = 256
"""Headers that are cached: those of a model are the same in every request."""


@functools.lru_cache(KEPT_HEADERS)
def encode_header(
    entries: tuple[tuple[str, DType, tuple[int, ...]], ...],
) -> tuple[bytes, list[DType]]:
    """The start of the head frame, up to the tensors, and each tensor's dtype on the wire."""
    if len(entries) > limits.TENSORS:
        raise InvalidArgument(f"{len(entries)} tensors in one message; the limit is {limits.TENSORS}")
    header = []
    for name, dtype, shape in entries:
        # "replace": a lone surrogate has no UTF-8. It is refused below, when msgpack encodes it.
        if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= limits.NAME_BYTES:
            raise InvalidArgument(f"tensor name {name!r:.80} is not a string of 1 to {limits.NAME_BYTES} bytes")
        try:
            datatype = datatype_of(dtype)
        except InvalidArgument as error:
            raise InvalidArgument(f"tensor {name!r}: {error.message}") from None
        if len(shape) > limits.RANK:
            raise InvalidArgument(f"tensor {name!r} has {len(shape)} dimensions; the limit is {limits.RANK}")
        header.append((name, datatype, shape))
    try:
        encoded = msgpack.packb(header)
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"tensor name {error.object!r:.80} is not valid Unicode") from None
    return len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded, [DATATYPES[datatype] for _, datatype, _ in header]


def decode_header(frame: bytes) -> list[tuple[str, str, tuple[int, ...]]]:
    """Decode a header to `(name, datatype, shape)` of each tensor. Raises ProtocolError."""
    entries = unpack(frame, "a header", limits.TENSORS)
    if type(entries) is not list or len(entries) > limits.TENSORS:
        raise ProtocolError(f"a header is an array of at most {limits.TENSORS} tensors")
    names = set()
    for entry in entries:
        if type(entry) is not list or len(entry) != 3:
            raise ProtocolError("a header's entry is an array of name, datatype and shape")
        name, datatype, shape = entry
        if type(name) is not str or not 0 < len(name.encode()) <= limits.NAME_BYTES or name in names:
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
    """Decode `[head, frame, ...]` to named arrays that view the frames' memory.

    The head is bytes; the other frames are bytes or `zmq.Frame`. Raises ProtocolError.
    """
    if not frames:
        raise ProtocolError("the header is missing")
    head = frames[0]
    at = LENGTH_BYTES + int.from_bytes(head[:LENGTH_BYTES], "big")
    if not LENGTH_BYTES <= at <= len(head):
        raise ProtocolError(f"a header of {at - LENGTH_BYTES} bytes does not end in its frame of {len(head)}")
    if at > LENGTH_BYTES + limits.HEADER_BYTES:
        raise ProtocolError(f"a header has at most {limits.HEADER_BYTES} bytes, not {at - LENGTH_BYTES}")
    layout = (_cached_layout if at <= KEPT_HEADER_BYTES else layout_of)(head[LENGTH_BYTES:at])
    tensors: dict[str, Array] = {}
    used = 1
    for name, dtype, shape, nbytes in layout:
        if nbytes <= _PACKED:
            frame, offset, at = head, at, at + nbytes
            if at > len(head):
                left = len(head) - offset
                raise ProtocolError(f"{_named(name, dtype, shape, nbytes)}, {left} are left in its frame")
        else:
            if used == len(frames):
                raise ProtocolError(f"tensor {name!r} is missing: {used - 1} frames follow the header's")
            frame, offset = frames[used], 0
            used += 1
            if len(frame) != nbytes:
                raise ProtocolError(f"{_named(name, dtype, shape, nbytes)}, its frame has {len(frame)}")
        tensors[name] = np.ndarray(shape, dtype, frame, offset)
    if used != len(frames) or at != len(head):
        raise ProtocolError(
            f"{len(head) - at} bytes and {len(frames) - used} frames more than the header's tensors have"
        )
    return tensors


def _named(name: str, dtype: DType, shape: tuple[int, ...], nbytes: int) -> str:
    return f"tensor {name!r}: {datatype_of(dtype)}{list(shape)} needs {nbytes} bytes"


KEPT_HEADER_BYTES = 1024
"""The largest header that is cached, in bytes: a peer's headers must not fill the memory."""


def layout_of(header: bytes) -> tuple[tuple[str, DType, tuple[int, ...], int], ...]:
    """Name, dtype, shape and bytes of each tensor. Raises ProtocolError."""
    layout = []
    for name, datatype, shape in decode_header(header):
        dtype = DATATYPES[datatype]
        nbytes = math.prod(shape) * dtype.itemsize
        if not nbytes:
            check_empty(name, dtype, shape)
        layout.append((name, dtype, shape, nbytes))
    return tuple(layout)


def check_empty(name: str, dtype: DType, shape: tuple[int, ...]) -> None:
    """Raise ProtocolError for a shape with an extent of 0, and others that NumPy cannot multiply."""
    try:
        np.ndarray(shape, dtype, b"")
    except ValueError:
        raise ProtocolError(f"tensor {name!r}: {list(shape)} is too large a shape") from None


_cached_layout = functools.lru_cache(KEPT_HEADERS)(layout_of)


def encode_body(body: object) -> bytes:
    """Encode the body of an Announce or an Answer."""
    return msgpack.packb(body)  # type: ignore[no-any-return]


def decode_body(frames: Sequence[Any], what: str) -> object:
    """Decode `[body]`. Raises ProtocolError, which calls the message `what`."""
    if len(frames) != 1:
        raise ProtocolError(f"{what} has one frame after its envelope, not {len(frames)}")
    data = memoryview(frames[0])
    if data.nbytes > limits.BODY_BYTES:
        raise ProtocolError(f"the body of {what} has at most {limits.BODY_BYTES} bytes, not {data.nbytes}")
    return unpack(data, f"the body of {what}", limits.BODY_ITEMS)
