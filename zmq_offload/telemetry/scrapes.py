"""What a server of metrics answers: as little of HTTP as a scrape needs. Pure.

Each connection has one request and is closed after the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from zmq_offload.telemetry.exposition import CONTENT_TYPE

HEAD_BYTES = 8192
"""The longest head of a request."""

ELSEWHERE = b"there is only /metrics\n"
"""The answer at other paths, by which `zmq-offload doctor` knows such a server."""

_END = b"\r\n\r\n"
_TEXT = "text/plain; charset=utf-8"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}


Answer: TypeAlias = "tuple[bytes, bytes | bytearray]"
"""The head and the body of an answer. The body may be large, and is not copied."""


def answer(received: bytes, metrics: Callable[[], bytearray | None]) -> Answer | None:
    """The whole answer to what a connection sent until now; None if its request is not at its end yet.

    `metrics` makes the text, or returns None if that failed. It is called only if it is asked for.
    """
    head, end, _ = received.partition(_END)
    if not end:
        return _response(431, "the head of the request is too long\n") if len(received) > HEAD_BYTES else None
    method, space, rest = head.split(b"\r\n", 1)[0].partition(b" ")
    target, _, protocol = rest.rpartition(b" ")
    if not space or not target or not protocol.startswith(b"HTTP/1."):
        return _response(400, "this is not a request of HTTP/1.1\n")
    if method not in (b"GET", b"HEAD"):
        return _response(405, "only GET and HEAD are answered\n", allow=True)
    whole = method == b"GET"
    if target.partition(b"?")[0] != b"/metrics":
        return _response(404, ELSEWHERE.decode(), whole=whole)
    text = metrics()
    if text is None:
        return _response(500, "the metrics could not be made; the log says why\n", whole=whole)
    return _response(200, text, CONTENT_TYPE, whole=whole)


def _response(
    status: int, body: str | bytearray, kind: str = _TEXT, *, whole: bool = True, allow: bool = False
) -> Answer:
    """An answer; without `whole` it has no body, as the answer to HEAD."""
    content = body.encode() if isinstance(body, str) else body
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        *(["Allow: GET, HEAD"] if allow else []),
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode(), content if whole else b""
