"""The heads of requests: from bytes to a checked `Head`. Pure.

llhttp, by httptools, parses a head. It refuses what lets two parsers disagree about where a request ends: two lengths,
a length and a transfer coding, bare line feeds, folded headers. A parser is made for each head and sees nothing else,
so that no state of one request reaches the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import httptools

from zmq_offload.errors import one_line, printable
from zmq_offload.gateway.http.limits import HEADERS, REQUEST_LINE_BYTES, Limits

END = b"\r\n\r\n"
"""Ends a head, and a body of chunks."""

_HANDSHAKE = b"\x16"
"""Begins a connection with TLS. No request begins so, and its client waits for an answer until its time is over."""

_SINGLE = frozenset({"authorization", "content-encoding", "content-type", "host", "inference-header-content-length"})
"""Headers of which two make a request ambiguous."""


class Refused(Exception):
    """A request is answered with `status` because of how it travels, and its connection is closed."""

    def __init__(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


class Head(NamedTuple):
    """Request line and headers. `length` is None for a body of chunks. `expects` asks for 100 Continue."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    length: int | None
    keep_alive: bool
    expects: bool
    version: str


class Heads:
    """Parses heads, and remembers short ones: most clients send the same head again and again.

    Half of the time for a small request would be spent in parsing. A head is only its bytes, so that it may be shared
    by connections.
    """

    _MOST = 256
    _LONGEST = 1024

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[bytes, Head] = {}

    def parse(self, data: bytes) -> Head:
        """Parse a head, `END` included. Raises Refused."""
        head = self._known.get(data)
        if head is None:
            check_complete(data, self._limits)
            head = parse_head(data, self._limits)
            if len(data) <= self._LONGEST and "traceparent" not in head.headers:  # that is never the same again
                if len(self._known) >= self._MOST:
                    self._known.clear()
                self._known[data] = head
        return head


class _Parts:
    """What the parser calls back with."""

    __slots__ = ("count", "headers", "keep_alive", "parser", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[str, str] = {}
        self.count = 0
        self.keep_alive = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        self.count += 1
        if key in self.headers:
            if key in _SINGLE:
                raise Refused(400, f"the request has two headers {key!r}; send one")
            self.headers[key] += f", {value.decode('latin-1')}"
        else:
            self.headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.keep_alive = self.parser.should_keep_alive()


def parse_head(data: bytes, limits: Limits) -> Head:
    """Parse a head, `END` included. Raises Refused."""
    parts = _Parts()
    parser = parts.parser
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # the offer of another protocol is not taken: the answer is HTTP/1.1
    except httptools.HttpParserError as error:
        if isinstance(error.__context__, Refused):
            raise error.__context__ from None
        raise Refused(400, f"the request is malformed: {one_line(error).lower()}") from None
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise Refused(505, f"the version HTTP/{version} is not spoken here; use HTTP/1.1")
    if parts.count > HEADERS:
        raise Refused(431, f"the request has {parts.count} headers; send at most {HEADERS}")
    method = parser.get_method().decode()
    headers = parts.headers
    if version == "1.1" and "host" not in headers:
        raise Refused(400, "the request has no header 'Host'; send it")
    path, query = _split(parts.target, method)
    expectation = headers.get("expect")
    if expectation is not None and expectation.lower() != "100-continue":
        raise Refused(417, f"the expectation {printable(expectation)!r} cannot be met; send '100-continue' or none")
    return Head(
        method,
        path,
        query,
        headers,
        _length(headers, version, limits),
        parts.keep_alive,
        expectation is not None and version == "1.1",
        version,
    )


def check_incomplete(data: bytearray, limits: Limits) -> None:
    """Raise Refused if a head that is still without its end is too long, or is a handshake of TLS."""
    if data[:1] == _HANDSHAKE:
        raise Refused(400, "this port has no TLS; use http:// instead of https://")
    if len(data) > REQUEST_LINE_BYTES and data.find(b"\r\n", 0, REQUEST_LINE_BYTES + 2) < 0:
        raise _long_line()
    if len(data) > limits.header_bytes:
        raise _long_head(limits)


def check_complete(data: bytes, limits: Limits) -> None:
    """Raise Refused if a head is too long."""
    if len(data) > REQUEST_LINE_BYTES and data.index(b"\r\n") > REQUEST_LINE_BYTES:
        raise _long_line()
    if len(data) > limits.header_bytes:
        raise _long_head(limits)


def _long_line() -> Refused:
    return Refused(414, f"the request line is too long; send at most {REQUEST_LINE_BYTES} bytes")


def _long_head(limits: Limits) -> Refused:
    return Refused(431, f"the headers are too long; send at most {limits.header_bytes} bytes")


def _length(headers: dict[str, str], version: str, limits: Limits) -> int | None:
    """The length of the body, or None if it comes in chunks."""
    coding = headers.get("transfer-encoding")
    if coding is None:
        length = int(headers.get("content-length", "0"))  # the parser has checked its digits
        if length > limits.body_bytes:
            raise Refused(413, f"the body has {length} bytes; send at most {limits.body_bytes}")
        return length
    if coding.strip().lower() != "chunked":
        raise Refused(501, f"the transfer coding {printable(coding)!r} is not supported; use 'chunked'")
    if version == "1.0":
        raise Refused(400, "HTTP/1.0 has no transfer codings; send 'Content-Length'")
    return None


def _split(target: bytes, method: str) -> tuple[str, str]:
    """Path and query of a request's target."""
    text = target.decode("latin-1")
    if not text.startswith("/"):
        if text == "*" and method == "OPTIONS":
            return text, ""
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            raise Refused(400, f"the target {printable(text)[:100]!r} is not a path; begin it with '/'")
        text = f"/{rest.partition('/')[2]}"
    path, _, query = text.partition("#")[0].partition("?")
    return path, query
