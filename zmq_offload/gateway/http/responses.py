"""The heads of responses, and responses for what never reaches a handler. Pure."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from http import HTTPStatus

from zmq_offload.errors import OffloadError, ResourceExhausted, Unauthenticated
from zmq_offload.gateway.access.decisions import CHALLENGE
from zmq_offload.gateway.calls import Buffers
from zmq_offload.gateway.http.heads import Refused
from zmq_offload.gateway.http.limits import Limits
from zmq_offload.gateway.http.messages import Response
from zmq_offload.gateway.statuses import CODES

_JSON = ("Content-Type", "application/json")

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}


def head_of(
    status: int, headers: Sequence[tuple[str, str]], length: int | None, date: str, connection: str | None = None
) -> bytes:
    """The head of a response with a body of `length` bytes, or one that ends with its connection.

    `connection` is the value of that header.
    """
    make = _known_head if len(headers) <= _OWN else _head
    before, after = make(status, tuple(headers), length, connection)
    return before + date.encode() + after


_OWN = 2
"""Headers of a response that this gateway writes alike again and again. With more, some are of the client's making."""


def _head(
    status: int, headers: tuple[tuple[str, str], ...], length: int | None, connection: str | None
) -> tuple[bytes, bytes]:
    """A head before and after the date."""
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    if status != HTTPStatus.NO_CONTENT and length is not None:
        lines.append(f"Content-Length: {length}\r\n")
    lines.append(f"Connection: {connection}\r\n\r\n" if connection else "\r\n")
    before = f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\nDate: "
    return before.encode("latin-1"), f"\r\n{''.join(lines)}".encode("latin-1")


_known_head = functools.lru_cache(256)(_head)


def size_of(parts: Buffers) -> int:
    """Bytes of a body. The items of a view may be larger than a byte."""
    return sum([part.nbytes if isinstance(part, memoryview) else len(part) for part in parts])


def failure(status: int, message: str, *headers: tuple[str, str]) -> Response:
    """A response with a JSON body as Triton and TensorFlow Serving have it."""
    return Response(status, [json.dumps({"error": message}).encode()], [_JSON, *headers])


def exhausted(limits: Limits) -> ResourceExhausted:
    """The error of a request, or an answer, that is more than all connections together may hold."""
    return ResourceExhausted(
        f"the gateway holds {limits.held_bytes} bytes of requests and unread answers; try again later"
    )


def failed(error: OffloadError | Refused) -> Response:
    """The response to a request that is refused."""
    if isinstance(error, Refused):
        return failure(error.status, error.message, *error.headers)
    headers = [CHALLENGE] if isinstance(error, Unauthenticated) else []
    if isinstance(error, ResourceExhausted):
        headers.append(("Retry-After", "1"))
    return failure(CODES[error.code].http, error.message, *headers)
