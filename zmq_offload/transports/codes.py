"""Errors of other servers as errors of this project. Pure."""

from __future__ import annotations

import msgspec

from zmq_offload.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OffloadError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    from_status,
    printable,
)

_HTTP: dict[int, type[OffloadError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    405: Unimplemented,
    408: DeadlineExceeded,
    409: FailedPrecondition,
    412: FailedPrecondition,
    413: ResourceExhausted,
    429: ResourceExhausted,
    499: DeadlineExceeded,
    500: Internal,
    501: Unimplemented,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
"""HTTP's statuses, as google.rpc.Code's comments and the servers of inference use them."""

_TEXT = 2000
"""Characters that are shown of a server's text."""


class _Error(msgspec.Struct):
    error: str


def error_text(body: bytes | bytearray) -> str:
    """What a server says over HTTP in an answer that is an error; "" if it is not JSON with that as its "error"."""
    try:
        return msgspec.json.decode(body, type=_Error).error
    except (ValueError, RecursionError):
        return ""


def of_http(status: int, text: str, server: str) -> OffloadError:
    """The error of an HTTP status, with the server's own text."""
    kind = _HTTP.get(status, InvalidArgument if 400 <= status < 500 else Internal)
    return kind(f"{_shown(text) or f'HTTP status {status}'} (from {server})")


def of_grpc(code: str, text: str, server: str) -> OffloadError:
    """The error of a status code of gRPC by its name, such as "NOT_FOUND", with the server's own text."""
    return from_status(code, f"{_shown(text) or f'status {code}'} (from {server})")


def _shown(text: str) -> str:
    return printable(" ".join(text.split()))[:_TEXT]
