"""Tensors from nested lists of JSON, and back. Pure.

As in TensorFlow Serving, the first element at each level decides the shape, and a number is never taken for a Boolean
or a fraction for a whole number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.decimals import short_floats
from zmq_offload.gateway.oip.json_data import ELEMENTS, SLOW_BYTES, check_length
from zmq_offload.gateway.oip.parameters import shown
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, DATATYPES, TensorSpec

_KINDS: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true and false"),
    "i": ({int}, "whole numbers"),
    "u": ({int}, "whole numbers"),
    "f": ({int, float}, "numbers"),
}
"""Kind of a NumPy dtype -> the types of JSON that fit, and their name."""


_LISTS = 2**20
"""Lists and objects in the JSON of a request. An empty one takes 30 times the memory of its text."""

_NAMES = 2**21
"""Names in the JSON of a request; the rows of a table repeat those of their columns."""


def parse(body: Buffer) -> Any:
    """Parse JSON. Raises InvalidArgument.

    NaN and Infinity, which TensorFlow Serving's JSON has and JSON has not, are left to Python's parser, which takes six
    times as long. Every value is an object of Python for a moment, so there are limits.
    """
    text = bytes(body) if isinstance(body, memoryview) else body
    check_length(len(text))
    elements, lists, names = text.count(b","), text.count(b"[") + text.count(b"{"), text.count(b":")
    if elements >= ELEMENTS or lists > _LISTS or names > _NAMES:
        raise InvalidArgument(
            f"the body has about {elements} elements, {lists} lists or objects, and {names} names; send at most "
            f"{ELEMENTS}, {_LISTS} and {_NAMES} as JSON, and larger tensors over gRPC"
        )
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if b"NaN" not in text and b"Infinity" not in text:
            raise InvalidArgument(f"the body is not JSON: {error}") from None
    if len(text) > SLOW_BYTES:
        raise InvalidArgument(
            f"the body has {len(text)} bytes and NaN or Infinity, or is malformed; send at most {SLOW_BYTES} with these"
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the body is not JSON: {error}") from None


def array_of(value: object, spec: TensorSpec | None, what: str) -> Array:
    """The array of nested lists. `what` has them, for a message.

    Without a spec, numbers are FP32, whole numbers INT64. Raises InvalidArgument.
    """
    shape, flat = _flat(value, what)
    if spec is None:
        types = set(map(type, flat))
        name = "BOOL" if types == {bool} else "INT64" if types == {int} else "FP32"
    else:
        name = spec.datatype
        if not flat and len(shape) < len(spec.shape) and ANY not in (rest := spec.shape[len(shape) :]):
            shape += rest  # lists without elements cannot say what shape the elements have
    return _converted(flat, name, what).reshape(shape)


def _flat(value: object, what: str) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of nested lists, and all that they have."""
    shape: tuple[int, ...] = ()
    level: list[Any] = [value]
    while level and type(level[0]) is list:
        extent = len(level[0])
        if len(shape) == limits.RANK:
            raise InvalidArgument(f"{what} has lists nested more than {limits.RANK} times")
        for item in level:
            if type(item) is not list or len(item) != extent:
                raise InvalidArgument(
                    f"{what} is not a tensor: {shown(item)} is beside a list of {extent} elements; nest lists "
                    "of one length"
                )
        shape += (extent,)
        level = list(chain.from_iterable(level))
    return shape, level


def _converted(flat: list[Any], name: str, what: str) -> Array:
    dtype = DATATYPES[name]
    types, words = _KINDS[dtype.kind]
    if set(map(type, flat)) - types:
        wrong = next(item for item in flat if type(item) not in types)
        why = "; base64 data is for strings, which no model takes" if is_base64(wrong) else ""
        raise InvalidArgument(f"{what} has the value {shown(wrong)}; {name} takes {words}{why}")
    if dtype.kind in "iu" and flat:
        for bound in (min(flat), max(flat)):
            if not np.iinfo(dtype).min <= bound <= np.iinfo(dtype).max:
                raise InvalidArgument(f"{what} has the value {shown(bound)}, which does not fit {name}")
    if dtype.kind != "f":
        return np.array(flat, dtype)
    try:
        exact = np.array(flat, np.float64)
    except OverflowError:
        raise InvalidArgument(f"{what} has a number that does not fit {name}") from None
    with np.errstate(over="ignore"):
        array = exact.astype(dtype)
    lost = np.isinf(array) & np.isfinite(exact)
    if lost.any():
        raise InvalidArgument(f"{what} has the value {exact[lost][0]}, which does not fit {name}")
    return array


def is_base64(value: object) -> bool:
    """Whether a value is what TensorFlow Serving has for bytes: {"b64": "..."}."""
    return type(value) is dict and value.keys() == {"b64"} and type(value["b64"]) is str


def nested(name: str, array: Array) -> Any:
    """An output's values in nested lists, floats as short as they can be. Raises InvalidArgument for too many."""
    if array.size > ELEMENTS:
        raise InvalidArgument(
            f"output {name!r:.100} has {array.size} elements, and at most {ELEMENTS} are returned as JSON; use gRPC"
        )
    return (short_floats(array) if array.dtype.kind == "f" else array).tolist()


def text(document: object, arrays: Iterable[Array] = ()) -> bytes:
    """JSON of a document with the values of `arrays`. Infinities and NaN are written as TensorFlow Serving does."""
    if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in arrays):
        return msgspec.json.encode(document)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
