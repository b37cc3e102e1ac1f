"""The heads of responses, and responses for what never reaches a handler. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
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
    status: int, headers: Iterable[tuple[str, str]], length: int, date: str, connection: str | None = None
) -> bytes:
    """The head of a response with a body of `length` bytes. `connection` is the value of that header."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\nDate: {date}\r\n"]
    lines.extend([f"{name}: {value}\r\n" for name, value in headers])
    if status != HTTPStatus.NO_CONTENT:
        lines.append(f"Content-Length: {length}\r\n")
    lines.append(f"Connection: {connection}\r\n\r\n" if connection else "\r\n")
    return "".join(lines).encode("latin-1")


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
