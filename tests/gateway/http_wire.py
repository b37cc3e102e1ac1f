"""HTTP connections without sockets and without waiting: bytes go in by hand, the clock is set by hand."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any, cast

from zmq_offload.gateway.access.decisions import Access, Open
from zmq_offload.gateway.calls import Cancel
from zmq_offload.gateway.http.limits import Limits
from zmq_offload.gateway.http.messages import Request, Respond, Response
from zmq_offload.gateway.http.server import HttpServer

LIMITS = Limits(body_bytes=200_000, held_bytes=500_000, header_bytes=10_000, connections=3, idle=100.0, receive=10.0)


class Transport:
    """What a connection writes is in `written`; `unsent` is how much of it the client has not read."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.unsent = 0
        self.closed = self.aborted = self.ended = self.paused = False

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        assert not self.ended
        self.written += data

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Peer:
    """A client and its connection."""

    def __init__(self, server: HttpServer) -> None:
        self.transport = Transport()
        self.connection = server.protocol()
        self.connection.connection_made(cast("asyncio.Transport", self.transport))

    @property
    def reading(self) -> bool:
        """Whether the server takes bytes."""
        return not (self.transport.paused or self.transport.closed or self.transport.aborted)

    def send(self, data: bytes) -> None:
        """Send bytes, as long as the server takes them."""
        rest = memoryview(data)
        while rest and self.reading:
            buffer = self.connection.get_buffer(-1)
            count = min(len(rest), len(buffer))
            buffer[:count] = rest[:count]
            self.connection.buffer_updated(count)
            rest = rest[count:]

    def go(self) -> None:
        """Close the client's side."""
        self.connection.eof_received()
        self.connection.connection_lost(None)

    def answers(self, *methods: str) -> list[tuple[int, bytes]]:
        """Status and body of what came back, 100 Continue left out. `methods` are those of the requests."""
        stream = io.BytesIO(bytes(self.transport.written))
        found: list[tuple[int, bytes]] = []
        while stream.tell() < len(self.transport.written):
            response = HTTPResponse(cast("Any", Unclosed(stream)), method=(methods or ("GET",) * 10_000)[len(found)])
            response.begin()
            found.append((response.status, response.read()))
        return found


class Unclosed(io.BytesIO):
    """A stream that one HTTPResponse after the other reads from."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__()
        self._stream = stream

    def makefile(self, mode: str) -> io.BytesIO:
        return cast("io.BytesIO", self)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._stream.readline(-1 if size is None else size)

    def read(self, size: int | None = -1, /) -> bytes:
        return self._stream.read(size)


class Service:
    """A server, and a handler that says what it got. It answers at once, or, with `hold`, when `release` is called."""

    def __init__(self, limits: Limits = LIMITS, access: Access | None = None) -> None:
        self.requests: list[Request] = []
        self.canceled = 0
        self.hold = False
        self.respond: Callable[[Request], Response] = lambda request: Response(200, [request.body])
        self._waiting: list[tuple[Request, Respond]] = []
        self.server = HttpServer(self._handle, access or Open(), limits)
        self.time = 1000.0
        self.server.now = lambda: self.time

    def peer(self) -> Peer:
        return Peer(self.server)

    def release(self) -> None:
        """Answer what waits."""
        waiting, self._waiting = self._waiting, []
        for request, respond in waiting:
            respond(self.respond(request))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds * 2)):
            self.time += 0.5
            self.server.sweep()

    def _handle(self, request: Request, respond: Respond) -> Cancel | None:
        self.requests.append(request)
        if not self.hold:
            respond(self.respond(request))
            return None
        self._waiting.append((request, respond))
        return self._cancel

    def _cancel(self) -> None:
        self.canceled += 1


def request(path: str = "/", body: bytes = b"", *headers: str, method: str = "POST") -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(path: str, *chunks: bytes) -> bytes:
    """The bytes of a request whose body comes in chunks."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join([b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""]])


async def turns(count: int = 50) -> None:
    """Let the loop do what is waiting."""
    for _ in range(count):
        await asyncio.sleep(0)
