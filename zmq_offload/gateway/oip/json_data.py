"""Contents of tensors as JSON, and back. Pure.

Numbers keep their value: a float32 is written as the shortest text of the float64 that it is, and read back exactly.
NaN and the infinities are written and read as `NaN`, `Infinity` and `-Infinity`, as Triton and Python do, although JSON
has no such numbers.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.oip.tensors import dtype_of, nbytes_of
from zmq_offload.protocol.payload import Array

JSON_BYTES = 64 * 1024 * 1024
"""The longest JSON of a request; Triton's default is the same. Tensors in binary do not count."""

SLOW_BYTES = 16 * 1024 * 1024
"""The longest JSON with NaN or Infinity, which the slower parser takes."""

ELEMENTS = 2**23
"""Elements of a tensor in JSON. Each is an object of Python for a moment: a short text would fill the memory."""

NAMES, LISTS = 2**16, 2**20
"""Names in the JSON of a request, and lists of a tensor. A microsecond each holds up all other requests."""

_FEW_BYTES = 2**20
"""JSON of this size has too few of them to matter. Requests without tensors have no more."""

_NOT_NUMBERS = (b"NaN", b"Infinity")


def check_length(length: int) -> None:
    """Raise InvalidArgument for JSON that is too long."""
    if length > JSON_BYTES:
        raise InvalidArgument(
            f"the JSON of the request has {length} bytes; send at most {JSON_BYTES}, and large tensors as binary data"
        )


def check_small(body: Buffer) -> None:
    """Raise InvalidArgument for a body that is too long to be one without tensors."""
    if len(body) > _FEW_BYTES:
        raise InvalidArgument(f"the body has {len(body)} bytes; such a request takes at most {_FEW_BYTES}")


def _check_names(text: bytes | memoryview) -> None:
    """Raise InvalidArgument for JSON with too many names, before they are objects of Python."""
    if len(text) > _FEW_BYTES and (names := _count(text, b":")) > NAMES:
        raise InvalidArgument(f"the JSON of the request has about {names} names; at most {NAMES} are taken")


def _count(text: bytes | memoryview, byte: bytes) -> int:
    """How often a byte is in a text, which is not copied."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == byte[0]))


def loads(text: bytes | memoryview, wanted: Any, lenient: Any) -> Any:
    """Decode JSON to a type.

    Text with NaN or Infinity is decoded by a slower parser, to the type `lenient`. Raises InvalidArgument.
    """
    _check_names(text)
    try:
        return _decoder(wanted).decode(text)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"the request does not have the form of an inference: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = bytes(text)
        if not any(word in text for word in _NOT_NUMBERS):
            raise _malformed(error) from None
        if len(text) > SLOW_BYTES or _count(text, b"[") + _count(text, b"{") > LISTS:
            raise InvalidArgument(
                f"the JSON of the request has {len(text)} bytes and NaN or Infinity, or is malformed; send at most "
                f"{SLOW_BYTES} and {LISTS} lists with these, and large tensors as binary data"
            ) from None
    try:
        return msgspec.convert(json.loads(text), lenient)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"the request does not have the form of an inference: {error}") from None
    except (ValueError, RecursionError) as error:
        raise _malformed(error) from None


def _malformed(error: Exception) -> InvalidArgument:
    return InvalidArgument(f"the request is not JSON: {error}")


@functools.lru_cache
def _decoder(wanted: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(wanted)


def array_of(name: str, datatype: str, shape: Sequence[int], data: object) -> Array:
    """Make an array of JSON data, which is nested as the shape says, or flat.

    `data` is a `msgspec.Raw`, or what the slower parser made of it. Raises InvalidArgument, which names the input.
    """
    dtype = dtype_of(name, datatype)
    count = nbytes_of(name, dtype, shape) // dtype.itemsize
    depth = _depth(data)
    if not depth:
        raise InvalidArgument(f"input {name!r}: data is not an array")
    if depth > 1 and (depth > len(shape) or (depth < len(shape) and count)):
        raise InvalidArgument(
            f"input {name!r}: data is nested {depth} deep, but shape {list(shape)} has {len(shape)} extents; nest data "
            "as the shape says, or not at all"
        )
    if max(count, _elements(data)) > ELEMENTS:
        raise InvalidArgument(
            f"input {name!r} has {max(count, _elements(data))} elements; send at most {ELEMENTS} as JSON, and more as "
            "binary data"
        )
    if _lists(data) > LISTS:
        raise InvalidArgument(
            f"input {name!r} has {_lists(data)} lists of elements; send at most {LISTS} as JSON, or do not nest data"
        )
    wanted = _nested(datatype, depth)
    try:
        values = _decoder(wanted).decode(data) if isinstance(data, msgspec.Raw) else msgspec.convert(data, wanted)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"input {name!r}: data is not {datatype}: {error}") from None
    if depth > 1:
        values = _flat(name, values, shape[:depth])
    if len(values) != count:
        raise InvalidArgument(f"input {name!r}: shape {list(shape)} has {count} elements, data has {len(values)}")
    try:
        with np.errstate(over="raise"):
            return np.fromiter(values, _PARSED.get(datatype, dtype), count).astype(dtype, copy=False).reshape(shape)
    except (FloatingPointError, OverflowError):
        raise InvalidArgument(f"input {name!r}: data has a number that is too large for {datatype}") from None
    except ValueError:  # an extent of 0 makes no elements of extents that NumPy cannot multiply
        raise InvalidArgument(f"input {name!r}: {list(shape)} is too large a shape") from None


_INTEGERS = {
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, None),  # msgspec has no larger bound than that of an int64
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}
_PARSED = {"FP16": np.dtype("f8"), "FP32": np.dtype("f8")}
"""What JSON's numbers are before they are rounded to a datatype; otherwise they are the datatype's own."""


@functools.lru_cache
def _nested(datatype: str, depth: int) -> Any:
    """The type of lists, nested this deep, of a datatype's elements."""
    kind: Any = bool if datatype == "BOOL" else float
    if datatype in _INTEGERS:
        lowest, highest = _INTEGERS[datatype]
        kind = Annotated[int, msgspec.Meta(ge=lowest, le=highest)]
    for _ in range(depth):
        kind = list[kind]
    return kind


def _depth(data: object) -> int:
    """How deep the first element is nested."""
    if isinstance(data, msgspec.Raw):
        return next(_OPENING.finditer(memoryview(data)))[0].count(b"[")
    depth = 0
    while isinstance(data, list):
        depth, data = depth + 1, data[0] if data else None
    return depth


_OPENING = re.compile(rb"[\[ \t\r\n]*")
"""The brackets before the first element; it matches at the start of any text."""


def _elements(data: object) -> int:
    """How many elements the text has; 0 for one that is too short to have too many."""
    if not isinstance(data, msgspec.Raw) or len(text := memoryview(data)) < 2 * ELEMENTS:
        return 0
    return _count(text, b",") + 1


def _lists(data: object) -> int:
    """How many lists the text has; 0 for one that is too short to have too many."""
    if not isinstance(data, msgspec.Raw) or len(text := memoryview(data)) < 2 * LISTS:
        return 0
    return _count(text, b"[")


def _flat(name: str, values: list[Any], shape: Sequence[int]) -> list[Any]:
    """The elements of nested lists. Raises InvalidArgument if a list does not have the length of its extent."""
    lists = [values]
    for axis, extent in enumerate(shape):
        for each in lists:
            if len(each) != extent:
                raise InvalidArgument(
                    f"input {name!r}: a list of data has {len(each)} elements at dimension {axis}, where its shape has "
                    f"{extent}"
                )
        lists = list(itertools.chain.from_iterable(lists))
    return lists


def text_of(name: str, array: Array) -> bytes:
    """The elements of an output as a flat JSON array. Raises InvalidArgument for too many."""
    if array.size > ELEMENTS:
        raise InvalidArgument(
            f"output {name!r} has {array.size} elements, and at most {ELEMENTS} are returned as JSON; use binary data"
        )
    values = array.ravel().tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return json.dumps(values, separators=(",", ":")).encode()
    return msgspec.json.encode(values)
