"""Frames of HTTP/2 (RFC 9113, section 6) as bytes. Pure."""

from __future__ import annotations

import struct

from zmq_offload.gateway.http2.errors import ConnectionFault, ErrorCode

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

HEAD = struct.Struct(">IBI")
"""Head of a frame: length (24 bits) and type in one number, flags, stream."""

NUMBER = struct.Struct(">I")
_SETTING = struct.Struct(">HI")
_TWO = struct.Struct(">II")

LARGEST_WINDOW = 0x7FFF_FFFF
LARGEST_ID = 0x7FFF_FFFF
SMALLEST_MAX_FRAME, LARGEST_MAX_FRAME = 1 << 14, (1 << 24) - 1


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A whole frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, NUMBER.pack(increment))


def reset(stream: int, code: ErrorCode) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, NUMBER.pack(code))


def goaway(last: int, code: ErrorCode, reason: str = "") -> bytes:
    """A GOAWAY frame. `last` is the last stream that is, or may be, served."""
    return frame(GOAWAY, 0, 0, _TWO.pack(last, code) + reason.encode())


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Pairs of a setting's id and value."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a SETTINGS frame of {len(payload)} bytes")
    return list(_SETTING.iter_unpack(payload))


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a HEADERS frame without its padding and its priority."""
    start, padding = 0, 0
    if flags & PADDED:
        start, padding = 1, payload[0] if payload else 0
    if flags & PRIORITY_FLAG:
        start += 5
    end = len(payload) - padding
    if start > end:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a HEADERS frame of {len(payload)} bytes with longer padding")
    return payload[start:end] if start or padding else payload


def read_number(payload: bytes) -> int:
    """The one number of a WINDOW_UPDATE or RST_STREAM frame."""
    if len(payload) != NUMBER.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{len(payload)} bytes where a number has 4")
    number: int = NUMBER.unpack(payload)[0]
    return number


def check_goaway(payload: bytes) -> None:
    """Check what nobody needs: after it the peer begins no streams."""
    if len(payload) < _TWO.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a GOAWAY frame has {len(payload)} bytes")
