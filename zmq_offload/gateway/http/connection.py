"""One HTTP/1.1 connection: bytes to requests, responses to bytes.

Bytes arrive in a buffer that all connections share, since each read is handled before the next. What cannot be handled
yet is held by the connection. `Incoming` finds the requests in it; it has bodies received straight into their memory.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, cast

from zmq_offload.errors import OffloadError
from zmq_offload.gateway.access.decisions import NOBODY, STRANGERS_BYTES, is_stranger
from zmq_offload.gateway.access.tls import peer_of
from zmq_offload.gateway.calls import FAILED, Buffer, Cancel
from zmq_offload.gateway.http.codings import COMPRESSED_FROM, Decoding, Encoding, choose
from zmq_offload.gateway.http.heads import Head, Refused
from zmq_offload.gateway.http.incoming import Incoming
from zmq_offload.gateway.http.limits import Progress
from zmq_offload.gateway.http.messages import Request, Response
from zmq_offload.gateway.http.responses import exhausted, failed, failure, head_of, size_of
from zmq_offload.net.grants import Grant

if TYPE_CHECKING:
    from zmq_offload.gateway.http.server import HttpServer

_log = logging.getLogger(__name__)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_JOINED_BYTES = 64 * 1024
"""A response of at most this size is joined to one write: the copy costs less than a vector of buffers."""

_PIPELINED_BYTES = 64 * 1024
"""Bytes behind the request that is answered now. With more, the connection is not read until the answer."""

_TURN = 16
"""Pipelined requests that are answered before other connections have their turn."""

_LINGER = 5.0
"""Seconds for which a refused request is read on."""

_SILENCE = 0.5
"""Seconds for which a connection without a request is kept when the gateway drains: a request may be under way."""


class _Phase(enum.Enum):
    """What a connection does."""

    RECEIVING = enum.auto()  # waits for a request, or for the rest of one
    ANSWERING = enum.auto()  # a handler has the request
    CODING = enum.auto()  # the request is decompressed, or the response compressed
    STREAMING = enum.auto()  # the response has no end; what the client sends is not looked at
    SENDING = enum.auto()  # the client does not read its response as fast as it is written
    LINGERING = enum.auto()  # a request is refused; what follows is read, so that the client sees why
    CLOSING = enum.auto()


_DEAF = (_Phase.STREAMING, _Phase.LINGERING, _Phase.CLOSING)
"""Phases in which bytes that come are dropped."""


class Connection(asyncio.BufferedProtocol):
    """The protocol of one connection. `due` is when `overdue` is to be called."""

    __slots__ = (
        "_cancel",
        "_grant",
        "_head",
        "_held",
        "_holds",
        "_incoming",
        "_limits",
        "_number",
        "_peer",
        "_phase",
        "_progress",
        "_read_paused",
        "_server",
        "_started",
        "_taking",
        "_transport",
        "_write_paused",
        "due",
    )

    _transport: asyncio.Transport
    _head: Head
    _grant: Grant

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._phase = _Phase.RECEIVING
        self._held = bytearray()  # bytes that came and are not handled yet
        self._started = False  # the first bytes of a head have come
        self._incoming = Incoming(server.heads, server.limits, server.memory)
        self._holds = 0  # bytes of the request's body, or of its unread answer, as the server counts them
        self._number = 0  # of the request, so that a late response cannot answer another one
        self._cancel: Cancel | None = None
        self._taking = False
        self._read_paused = False
        self._write_paused = False
        self._progress = Progress()
        self.due = math.inf

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._peer = peer_of(transport)
        self.due = self._server.now() + self._limits.idle
        if not self._server.opened(self):
            error = Refused(503, f"the gateway has {self._limits.connections} connections; try again later")
            self._write(failed(error), "close")
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _Phase.CLOSING
        self._number += 1
        self._release()
        self._server.closed(self)
        cancel, self._cancel = self._cancel, None
        if cancel:
            cancel()

    def eof_received(self) -> None:
        """The client sends nothing more and counts as gone: the transport closes, and calls `connection_lost`."""

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._phase is _Phase.SENDING:
            self._next()

    def get_buffer(self, sizehint: int) -> memoryview:
        buffer = self._incoming.buffer
        return self._server.view if buffer is None else buffer

    def buffer_updated(self, nbytes: int) -> None:
        phase = self._phase
        if self._incoming.buffer is not None:
            self._fill(nbytes)
        elif phase is _Phase.RECEIVING and not self._held:
            self._take(self._server.buffer, nbytes)
        elif phase not in _DEAF:
            self._held += self._server.view[:nbytes]
            if phase is _Phase.RECEIVING:
                self._resume()
            elif len(self._held) > _PIPELINED_BYTES:
                self._read_paused = True
                self._transport.pause_reading()

    # What the server calls.

    def overdue(self, now: float) -> None:
        """`due` has passed."""
        phase = self._phase
        if phase is _Phase.RECEIVING:
            incoming = self._incoming
            if incoming.head is not None and self._progress.made(incoming.count, self._limits):
                self.due = now + self._limits.receive
            elif incoming.head is not None or self._started:
                self._refuse(Refused(408, "the request comes too slowly; send it faster"))
            else:
                self._close()
        elif phase is not _Phase.LINGERING and self._progress.made(self._sent(), self._limits):
            self.due = now + self._limits.receive
        else:
            self._transport.abort()

    def drain(self) -> None:
        """Close the connection after the answer, or soon if it has no request."""
        if self._phase is _Phase.RECEIVING and self._incoming.head is None and not self._started:
            self.due = min(self.due, self._server.now() + _SILENCE)
        elif self._phase is _Phase.STREAMING:
            self._close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    # Requests.

    def _resume(self) -> None:
        """Go on with the bytes that are held."""
        if self._phase is not _Phase.RECEIVING or self._taking:
            return
        if self._held:
            held, self._held = self._held, bytearray()
            self._take(held, len(held))
        if self._read_paused and self._phase is _Phase.RECEIVING:
            self._read_paused = False
            self._transport.resume_reading()

    def _take(self, data: bytearray, stop: int) -> None:
        """Take requests out of received bytes, until one has to wait for its answer or for more bytes."""
        incoming, start, last = self._incoming, 0, self._number + _TURN
        self._taking = True
        try:
            while start < stop and self._phase is _Phase.RECEIVING:
                head = incoming.head
                if head is None:
                    if self._number == last or (end := incoming.take_head(data, start, stop)) < 0:
                        break
                    start, head = end, self._begin(end == stop)
                end, body = incoming.take_body(head.length, data, start, stop)
                self._hold(end - start)
                start = end
                if body is not None:
                    self._handle(body)
        except (Refused, OffloadError) as error:
            self._refuse(error)
        finally:
            self._taking = False
        phase = self._phase
        if start < stop and phase is not _Phase.LINGERING and phase is not _Phase.CLOSING:
            self._held += memoryview(data)[start:stop]
            if phase is _Phase.RECEIVING:
                if self._number == last:
                    self._server.loop.call_soon(self._resume)
                if not self._started:
                    self._started = True
                    self.due = self._server.now() + self._limits.receive

    def _begin(self, alone: bool) -> Head:
        """A head has come, `alone` or with more bytes. Raises Refused or OffloadError, before a body is held."""
        head = self._head = cast("Head", self._incoming.head)
        if head.method == "OPTIONS":  # a browser sends no credential with it, and nothing is done
            self._grant = NOBODY
        else:
            self._grant = self._server.access.check(head.headers.get("authorization"), self._peer, head.path)
        if is_stranger(self._grant) and (head.length is None or head.length > STRANGERS_BYTES):
            raise Refused(413, f"the body is too long; send at most {STRANGERS_BYTES} bytes without a credential")
        if head.expects and alone and head.length != 0:
            self._transport.write(_CONTINUE)
        self._progress = Progress()
        self.due = self._server.now() + self._limits.receive
        return head

    def _fill(self, count: int) -> None:
        """Bytes were received straight into a body."""
        try:
            self._hold(count)
            body = self._incoming.received(count)
            if body is not None:
                self._handle(body)
        except (Refused, OffloadError) as error:
            self._refuse(error)

    def _hold(self, count: int) -> None:
        """Count bytes of bodies. Raises ResourceExhausted."""
        server = self._server
        self._holds += count
        server.held += count
        if server.held > self._limits.held_bytes:
            raise exhausted(self._limits)

    def _release(self) -> None:
        """The body, or the answer, is not held any more."""
        self._server.held -= self._holds
        self._holds = 0
        self._incoming.drop()

    def _handle(self, body: Buffer) -> None:
        """A request is complete. Raises Refused or OffloadError."""
        self._number += 1
        self._started = False
        self.due = math.inf  # who handles requests sees to it that each ends
        coding = self._head.headers.get("content-encoding", "identity")
        if coding == "identity" or not body:
            self._ask(body)
        else:
            self._phase = _Phase.CODING
            limit = STRANGERS_BYTES if is_stranger(self._grant) else self._limits.body_bytes
            self._decode(self._number, Decoding(coding, body, limit))

    def _decode(self, number: int, decoding: Decoding) -> None:
        """Decompress a part of a body. Raises Refused or OffloadError."""
        before = len(decoding.body)
        done = decoding.step()
        self._hold(len(decoding.body) - before)
        if done:
            self._ask(decoding.body)
        else:
            self._server.loop.call_soon(self._decode_on, number, decoding)

    def _decode_on(self, number: int, decoding: Decoding) -> None:
        """Decompress the next part."""
        if number == self._number and self._phase is _Phase.CODING:
            try:
                self._decode(number, decoding)
            except (Refused, OffloadError) as error:
                self._refuse(error)

    def _ask(self, body: Buffer) -> None:
        """Give the request to the handler."""
        self._phase = _Phase.ANSWERING
        number, head = self._number, self._head
        request = Request(head.method, head.path, head.query, head.headers, body, self._grant)
        try:
            cancel = self._server.handler(request, partial(self._respond, number))
        except Exception:
            _log.exception("the request %s %s failed", head.method, head.path)
            self._respond(number, failure(500, FAILED))
            return
        if self._number == number and self._phase is _Phase.ANSWERING:
            self._cancel = cancel

    # Responses.

    def _respond(self, number: int, response: Response) -> None:
        """Answer a request. Too late, if its connection is lost."""
        if number != self._number or self._phase is not _Phase.ANSWERING:
            return
        self._cancel = None
        if accepted := self._head.headers.get("accept-encoding"):
            coding = choose(accepted, response.compression)
            if coding and size_of(response.body) >= COMPRESSED_FROM:
                response.headers = [*response.headers, ("Content-Encoding", coding), ("Vary", "Accept-Encoding")]
                self._phase = _Phase.CODING
                self._encode(number, response, Encoding(coding, response.body))
                return
        self._answer(response)

    def _encode(self, number: int, response: Response, encoding: Encoding) -> None:
        """Compress a part of a response."""
        if number != self._number or self._phase is not _Phase.CODING:
            return
        if encoding.step():
            response.body = encoding.body
            self._answer(response)
        else:
            self._server.loop.call_soon(self._encode, number, response, encoding)

    def _answer(self, response: Response) -> None:
        """Write the response to the request, and go on."""
        head, server = self._head, self._server
        self._release()
        if response.stream is not None and head.method != "HEAD":
            self._begin_stream(response)
            return
        size = size_of(response.body)
        if size > _JOINED_BYTES and server.held + size > self._limits.held_bytes:
            response = failed(exhausted(self._limits))
        keep_alive = head.keep_alive and not server.draining
        connection = ("keep-alive" if head.version == "1.0" else None) if keep_alive else "close"
        self._write(response, connection, with_body=head.method != "HEAD")
        if self._write_paused:
            self._holds = self._transport.get_write_buffer_size()  # until the client has read it
            server.held += self._holds
        if keep_alive:
            self._next()
        else:
            self._close()

    def _begin_stream(self, response: Response) -> None:
        """Write the head of a response without an end. The end of the connection is its end."""
        assert response.stream is not None
        self._held.clear()
        self._phase = _Phase.STREAMING
        self._transport.write(head_of(response.status, response.headers, None, self._server.date, "close"))
        self._cancel = response.stream(self)
        if self._server.draining:
            self._close()

    def send(self, part: bytes) -> int:
        """Send a part of a stream, as `Pipe` says. Too late, if the connection closes."""
        if self._phase is not _Phase.STREAMING:
            return 0
        self._transport.write(part)
        return self._transport.get_write_buffer_size()

    def _write(self, response: Response, connection: str | None, *, with_body: bool = True) -> None:
        """Write a response."""
        parts = response.body
        size = size_of(parts)
        head = head_of(response.status, response.headers, size, self._server.date, connection)
        if not size or not with_body:
            self._transport.write(head)
        elif size <= _JOINED_BYTES:
            self._transport.write(b"".join([head, *parts]))
        else:
            self._transport.writelines([head, *parts])

    def _next(self) -> None:
        """Take the next request, once the client has read its response."""
        now = self._server.now()
        if self._write_paused:
            self._phase = _Phase.SENDING
            self._progress = Progress(self._sent())
            self.due = now + self._limits.receive
        else:
            self._release()
            self._phase = _Phase.RECEIVING
            self.due = now + self._limits.idle
            self._resume()

    def _sent(self) -> int:
        """Grows by the bytes that are sent."""
        return -self._transport.get_write_buffer_size()

    def _refuse(self, error: Refused | OffloadError) -> None:
        """Answer with an error, and close the connection when the client has had time to see it.

        To close it with bytes unread would reset it, and the client might not see the answer.
        """
        self._release()
        self._held.clear()
        self._write(failed(error), "close")
        self._phase = _Phase.LINGERING
        self.due = self._server.now() + _LINGER
        if self._transport.can_write_eof():
            self._transport.write_eof()
        if self._read_paused:
            self._read_paused = False
            self._transport.resume_reading()

    def _close(self) -> None:
        """Close the connection when all is sent."""
        self._held.clear()
        self._phase = _Phase.CLOSING
        self._progress = Progress(self._sent())
        self.due = self._server.now() + self._limits.receive
        self._transport.close()
