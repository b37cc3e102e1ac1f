"""Values in packets of TVM's RPC: arguments of functions, and what they return. Pure.

A sequence is the number of its values, and for each its type (four bytes) and its content, without padding.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from zmq_offload.errors import ProtocolError
from zmq_offload.protocol import limits

NONE, INT, BOOL, POINTER, DATATYPE, DEVICE, TENSOR, STRING, BYTES = 0, 1, 2, 4, 5, 6, 7, 8, 9
OBJECT, BYTES_OBJECT, MODULE = 64, 66, 73
"""Types of values: `TVMFFITypeIndex`."""

_REFERENCE = 115
"""`kRuntimeRPCObjectRef`: what follows is an object on the server."""

_CPU = (1, 0)
"""The first CPU, as `DLDevice`."""

_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}
"""Kinds of NumPy dtypes as `DLDataTypeCode`."""

_KNOWN = {(0, 8), (0, 16), (0, 32), (0, 64), (1, 8), (1, 16), (1, 32), (1, 64), (2, 16), (2, 32), (2, 64), (6, 8)}
"""Codes and bits of the datatypes that our tensors have."""

_LETTERS = {code: letter for letter, code in _KINDS.items()}

_VALUES = 1024
"""The most values in one packet."""

Buffer: TypeAlias = "bytes | bytearray | memoryview"


class Handle(NamedTuple):
    """An object on the server, by the number that the server gave it."""

    number: int


class Module(NamedTuple):
    """A module on the server, as an argument."""

    number: int


class Reference(NamedTuple):
    """Any other object on the server, as an argument."""

    number: int


class Device(NamedTuple):
    """The server's CPU, as an argument."""


class Tensor(NamedTuple):
    """An array in the memory of the server's CPU, at `data`."""

    data: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Value: TypeAlias = "str | int | bytes | Handle | Module | Reference | Device | Tensor | np.dtype[Any] | None"


def encode_values(values: Sequence[Value]) -> bytes:
    """A sequence of values."""
    return struct.pack("<i", len(values)) + b"".join(map(_encoded, values))


def encode_tensor(tensor: Tensor) -> bytes:
    """An array, without its content, as a packet that copies has it."""
    dtype = _datatype(tensor.dtype)
    shape = struct.pack(f"<{len(tensor.shape)}q", *tensor.shape)
    return struct.pack("<Qiii", tensor.data, *_CPU, len(tensor.shape)) + dtype + shape + bytes(8)


def decode_values(data: Buffer) -> list[Any]:
    """The values of a packet's sequence; bytes are views of the packet. Raises ProtocolError."""
    reader = _Reader(data)
    count = reader.number("<i")
    if not 0 <= count <= _VALUES:
        raise ProtocolError(f"a packet has {count} values; the limit is {_VALUES}")
    values = [_value(reader) for _ in range(count)]
    if reader.at != len(reader.data):
        raise ProtocolError(f"{len(reader.data) - reader.at} bytes follow the values of a packet")
    return values


def _encoded(value: Value) -> bytes:
    match value:
        case None:
            return struct.pack("<i", NONE)
        case str():
            data = value.encode()
            return struct.pack("<iQ", STRING, len(data)) + data
        case bytes():
            return struct.pack("<iQ", BYTES, len(value)) + value
        case bool():
            return struct.pack("<iq", BOOL, value)
        case int():
            return struct.pack("<iq", INT, value)
        case Handle(number):
            return struct.pack("<iQ", POINTER, number)
        case Module(number):
            return struct.pack("<iQ", MODULE, number)
        case Reference(number):
            return struct.pack("<iIQ", OBJECT, _REFERENCE, number)
        case Device():
            return struct.pack("<iii", DEVICE, *_CPU)
        case Tensor():
            return struct.pack("<i", TENSOR) + encode_tensor(value)
        case dtype:
            return struct.pack("<i", DATATYPE) + _datatype(dtype) + bytes(4)


def _datatype(dtype: np.dtype[Any]) -> bytes:
    return struct.pack("<BBH", _KINDS[dtype.kind], 8 * dtype.itemsize, 1)


class _Reader:
    """Reads a packet. Raises ProtocolError at its end."""

    def __init__(self, data: Buffer) -> None:
        self.data = memoryview(data)
        self.at = 0

    def number(self, form: str) -> int:
        found: int = self.numbers(form)[0]
        return found

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))

    def bytes(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self.data):
            raise ProtocolError(f"a packet of {len(self.data)} bytes ends within a value")
        found = self.data[self.at : end]
        self.at = end
        return found


def _value(reader: _Reader) -> Any:
    kind = reader.number("<i")
    if kind == NONE:
        return None
    if kind in (INT, BOOL):
        return reader.number("<q")
    if kind == POINTER:
        return Handle(reader.number("<Q"))
    if kind == STRING:
        return bytes(reader.bytes(reader.number("<Q"))).decode(errors="replace")
    if kind == BYTES:
        return reader.bytes(reader.number("<Q"))
    if kind == TENSOR:
        return _tensor(reader)
    raise ProtocolError(f"a value is of type {kind}, which no call here has")


def _tensor(reader: _Reader) -> Tensor:
    data, _, _, ndim, code, bits, lanes = reader.numbers("<QiiiBBH")
    if not 0 <= ndim <= limits.RANK:
        raise ProtocolError(f"an array has {ndim} dimensions; the limit is {limits.RANK}")
    shape = reader.numbers(f"<{ndim}q")
    offset = reader.number("<Q")
    if (code, bits) not in _KNOWN or lanes != 1 or any(not 0 <= extent < limits.EXTENT for extent in shape):
        raise ProtocolError(f"an array has the datatype ({code}, {bits}, {lanes}) and the shape {shape}")
    if data + offset >= 1 << 64:
        raise ProtocolError(f"an array is at {data} with the offset {offset}, which is beyond all memory")
    return Tensor(data + offset, np.dtype(f"<{_LETTERS[code]}{bits // 8}"), shape)
