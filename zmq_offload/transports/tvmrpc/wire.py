"""TVM's RPC protocol as bytes, as far as calls need it. Pure.

It is spoken here and not by `tvm.rpc`, which waits in C++ without a deadline, cannot be stopped, and has one call in
flight. A packet is its length (eight bytes), a code and a body. The protocol is that of TVM 0.27, number "0.8.0"; a
server of another number says so in its answer to `init`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from zmq_offload.errors import ProtocolError, Unauthenticated, Unavailable, printable

MAGIC = 0xFF271
TRACKER_MAGIC = 0x2F271
_PROTOCOL = b"0.8.0"
_MISMATCH = MAGIC + 2

SHUTDOWN, INIT, CALL, RETURN, EXCEPTION = range(1, 6)
GET_FUNCTION, FREE = 9, 10
"""Codes of packets: `RPCCode`."""

_NONE, _INT, _POINTER, _STRING, _BYTES = 0, 1, 4, 8, 9
_BYTES_OBJECT = 66
"""Types of values: `TVMFFITypeIndex`."""

LENGTH = 8
"""Bytes of a packet's length."""

KEY_BYTES = 4096
"""The longest key of a server."""

_VALUES = 1024
"""The most values in one packet."""

Buffer: TypeAlias = "bytes | bytearray | memoryview"


class Handle(NamedTuple):
    """An object on the server, by the number that the server gave it."""

    number: int


class Failed(NamedTuple):
    """The text of an exception on the server."""

    text: str


# --- a client's packets -----------------------------------------------------------------------------------------


def hello(key: str) -> bytes:
    """The first bytes of a client. `key` is the server's key, or the one that a tracker gave."""
    name = f"client:{key}".encode()
    return struct.pack("<ii", MAGIC, len(name)) + name


def init() -> bytes:
    """The packet that begins a session."""
    return packet(INIT, struct.pack("<Q", len(_PROTOCOL)) + _PROTOCOL + encode_values(()))


def get_function(name: str) -> bytes:
    """The packet that asks for a registered function. The answer is a Handle, with the number 0 if there is none."""
    return packet(GET_FUNCTION, encode_values((name,)))


_CALL_BYTES = struct.Struct("<QiQiiQ")


def call_with_bytes(function: int, nbytes: int) -> bytes:
    """The start of the packet that calls a function with bytes, which follow."""
    return _CALL_BYTES.pack(_CALL_BYTES.size - LENGTH + nbytes, CALL, function, 1, _BYTES, nbytes)


def shutdown() -> bytes:
    """The packet that ends a session."""
    return packet(SHUTDOWN, b"")


# --- a server's packets -----------------------------------------------------------------------------------------

_RETURN_BYTES = struct.Struct("<QiiiqiQ")


def return_of_bytes(nbytes: int) -> bytes:
    """The start of the packet that returns bytes, which follow."""
    return _RETURN_BYTES.pack(_RETURN_BYTES.size - LENGTH + nbytes, RETURN, 2, _INT, _BYTES_OBJECT, _BYTES, nbytes)


def return_of_nothing() -> bytes:
    """The packet that returns None, as a system call does."""
    return packet(RETURN, encode_values((None,)))


def exception(text: str) -> bytes:
    """The packet of an exception."""
    return packet(EXCEPTION, encode_values((text,)))


# --- encoding ---------------------------------------------------------------------------------------------------


def packet(code: int, body: bytes) -> bytes:
    """A packet."""
    return struct.pack("<Qi", 4 + len(body), code) + body


def encode_values(values: Sequence[str | Handle | None]) -> bytes:
    """A sequence of values."""
    parts = [struct.pack("<i", len(values))]
    for value in values:
        if value is None:
            parts.append(struct.pack("<i", _NONE))
        elif isinstance(value, str):
            data = value.encode()
            parts.append(struct.pack("<iQ", _STRING, len(data)) + data)
        else:
            parts.append(struct.pack("<iQ", _POINTER, value.number))
    return b"".join(parts)


# --- decoding ---------------------------------------------------------------------------------------------------


def check_greeting(code: int, address: str, key: str) -> None:
    """Raise an error unless the first four bytes of a server are those of one that takes the key."""
    if code == _MISMATCH:
        raise Unauthenticated(
            f"the TVM RPC server at {address} has another key than {key!r}; give the one of its --key by ?key=KEY"
        )
    if code != MAGIC:
        raise ProtocolError(f"{address} is not a TVM RPC server: it answered {struct.pack('<i', code)!r}")


def check_key_length(length: int, address: str) -> int:
    """The length of a server's key, which is not used. Raises ProtocolError."""
    if not 0 <= length <= KEY_BYTES:
        raise ProtocolError(f"{address} is not a TVM RPC server: its key would have {length} bytes")
    return length


class _Reader:
    """Reads a packet. Raises ProtocolError at its end."""

    def __init__(self, data: Buffer) -> None:
        self.data = memoryview(data)
        self.at = 0

    def number(self, form: str) -> int:
        found: int = struct.unpack(form, self.bytes(struct.calcsize(form)))[0]
        return found

    def bytes(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self.data):
            raise ProtocolError(f"a packet of {len(self.data)} bytes ends within a value")
        found = self.data[self.at : end]
        self.at = end
        return found


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


def _value(reader: _Reader) -> Any:
    kind = reader.number("<i")
    if kind == _NONE:
        return None
    if kind == _INT:
        return reader.number("<q")
    if kind == _POINTER:
        return Handle(reader.number("<Q"))
    if kind == _STRING:
        return bytes(reader.bytes(reader.number("<Q"))).decode(errors="replace")
    if kind == _BYTES:
        return reader.bytes(reader.number("<Q"))
    raise ProtocolError(f"a value is of type {kind}, which no call here has")


def decode_reply(body: Buffer) -> Any:
    """What a packet answers: a value, or Failed. Raises ProtocolError. A function's value comes with its type."""
    if len(body) < 4:
        raise ProtocolError(f"a packet has {len(body)} bytes; the least is 4")
    view = memoryview(body)
    (code,) = struct.unpack_from("<i", view)
    if code not in (RETURN, EXCEPTION):
        raise ProtocolError(f"a packet with code {code} is no answer")
    values = decode_values(view[4:])
    if not values:
        raise ProtocolError("an answer has no value")
    if code == EXCEPTION:
        return Failed(str(values[0]))
    return values[-1]


def decode_bytes(body: Buffer) -> memoryview | Failed:
    """The bytes that a function returned. Raises ProtocolError if it returned something else."""
    value = decode_reply(body)
    if isinstance(value, (memoryview, Failed)):
        return value
    raise ProtocolError(f"the server's function returned {value!r:.80}; it returns bytes")


def session_failure(text: str, address: str) -> Unavailable:
    """The error of a server that does not begin a session."""
    return Unavailable(f"the TVM RPC server at {address} begins no session: {shown(text)}")


def shown(text: str) -> str:
    """The text of an exception on the server, in one line: what it says, without TVM's trace."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1] if lines else "no reason given")[:500]
