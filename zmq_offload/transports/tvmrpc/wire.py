"""Packets of TVM's RPC protocol, as far as calls need them. Pure.

It is spoken here and not by `tvm.rpc`, which waits in C++ without a deadline, cannot be stopped, and has one call in
flight. A packet is its length (eight bytes), a code and a body. The protocol is that of TVM 0.27, number "0.8.0"; a
server of another number says so in its answer to `init`.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from zmq_offload.errors import ProtocolError, Unauthenticated, Unavailable, printable
from zmq_offload.transports.tvmrpc.values import (
    BYTES,
    BYTES_OBJECT,
    INT,
    Buffer,
    Tensor,
    Value,
    decode_values,
    encode_tensor,
    encode_values,
)

MAGIC = 0xFF271
TRACKER_MAGIC = 0x2F271
_PROTOCOL = b"0.8.0"
_MISMATCH = MAGIC + 2

SHUTDOWN, INIT, CALL, RETURN, EXCEPTION, COPY_FROM, COPY_TO, COPIED = range(1, 9)
GET_FUNCTION, FREE = 9, 10
ALLOCATE = 13
"""Codes of packets: `RPCCode`."""

LENGTH = 8
"""Bytes of a packet's length."""

KEY_BYTES = 4096
"""The longest key of a server."""


class Failed(NamedTuple):
    """The text of an exception on the server."""

    text: str


# --- a client's packets -----------------------------------------------------------------------------------------


def hello(key: str) -> bytes:
    """The first bytes of a client. `key` is the server's key, or the one that a tracker gave."""
    name = f"client:{key}".encode(errors="replace")
    return struct.pack("<ii", MAGIC, len(name)) + name


def init() -> bytes:
    """The packet that begins a session."""
    return packet(INIT, struct.pack("<Q", len(_PROTOCOL)) + _PROTOCOL + encode_values(()))


def get_function(name: str) -> bytes:
    """The packet that asks for a registered function. The answer is a Handle, with the number 0 if there is none."""
    return packet(GET_FUNCTION, encode_values((name,)))


def call(function: int, *arguments: Value) -> bytes:
    """The packet that calls a function."""
    return packet(CALL, struct.pack("<Q", function) + encode_values(arguments))


_CALL_BYTES = struct.Struct("<QiQiiQ")


def call_with_bytes(function: int, nbytes: int) -> bytes:
    """The start of the packet that calls a function with bytes, which follow."""
    return _CALL_BYTES.pack(_CALL_BYTES.size - LENGTH + nbytes, CALL, function, 1, BYTES, nbytes)


def system_call(code: int, *arguments: Value) -> bytes:
    """The packet of a system call: GET_FUNCTION, FREE or ALLOCATE."""
    return packet(code, encode_values(arguments))


def copy_to(tensor: Tensor) -> bytes:
    """The start of the packet that fills an array on the server. Its content follows."""
    head = encode_tensor(tensor)
    size = 4 + len(head) + 8 + tensor.nbytes
    return struct.pack("<Qi", size, COPY_TO) + head + struct.pack("<Q", tensor.nbytes)


def copy_from(tensor: Tensor) -> bytes:
    """The packet that asks for the content of an array on the server."""
    return packet(COPY_FROM, encode_tensor(tensor) + struct.pack("<Q", tensor.nbytes))


def shutdown() -> bytes:
    """The packet that ends a session."""
    return packet(SHUTDOWN, b"")


# --- a server's packets -----------------------------------------------------------------------------------------

_RETURN_BYTES = struct.Struct("<QiiiqiQ")


def return_of_bytes(nbytes: int) -> bytes:
    """The start of the packet that returns bytes, which follow."""
    return _RETURN_BYTES.pack(_RETURN_BYTES.size - LENGTH + nbytes, RETURN, 2, INT, BYTES_OBJECT, BYTES, nbytes)


def return_of_nothing() -> bytes:
    """The packet that returns None, as a system call does."""
    return packet(RETURN, encode_values((None,)))


def exception(text: str) -> bytes:
    """The packet of an exception."""
    return packet(EXCEPTION, encode_values((text,)))


def packet(code: int, body: bytes) -> bytes:
    """A packet."""
    return struct.pack("<Qi", 4 + len(body), code) + body


# --- reading ----------------------------------------------------------------------------------------------------


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


def decode_return(body: Buffer) -> list[Any] | Failed:
    """The values that a packet returns, or Failed. A function's value comes after its type, and an array before its
    handle. Raises ProtocolError."""
    code, view = _code(body)
    if code not in (RETURN, EXCEPTION):
        raise ProtocolError(f"a packet with code {code} is no answer")
    values = decode_values(view)
    if not values:
        raise ProtocolError("an answer has no value")
    return Failed(str(values[0])) if code == EXCEPTION else values


def decode_reply(body: Buffer) -> Any:
    """What a packet answers: a value, or Failed. Raises ProtocolError."""
    values = decode_return(body)
    return values if isinstance(values, Failed) else values[-1]


def decode_bytes(body: Buffer) -> memoryview | Failed:
    """The bytes that a function returned. Raises ProtocolError if it returned something else."""
    value = decode_reply(body)
    if isinstance(value, (memoryview, Failed)):
        return value
    raise ProtocolError(f"the server's function returned {value!r:.80}; it returns bytes")


def decode_copied(body: Buffer, nbytes: int) -> memoryview | Failed:
    """The content of an array, or Failed. Raises ProtocolError."""
    code, view = _code(body)
    if code == COPIED and len(view) == nbytes:
        return view
    if code == EXCEPTION and isinstance(failed := decode_return(body), Failed):
        return failed
    raise ProtocolError(f"a packet with code {code} and {len(view)} bytes is no array of {nbytes} bytes")


def _code(body: Buffer) -> tuple[int, memoryview]:
    view = memoryview(body)
    if len(view) < 4:
        raise ProtocolError(f"a packet has {len(view)} bytes; the least is 4")
    return struct.unpack_from("<i", view)[0], view[4:]


def session_failure(text: str, address: str) -> Unavailable:
    """The error of a server that does not begin a session."""
    return Unavailable(f"the TVM RPC server at {address} begins no session: {shown(text)}")


def shown(text: str) -> str:
    """The text of an exception on the server, in one line: what it says, without TVM's trace."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1] if lines else "no reason given")[:500]
