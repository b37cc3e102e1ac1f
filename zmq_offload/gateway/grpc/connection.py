"""One connection of gRPC: its bytes to calls, and their replies to bytes."""

from __future__ import annotations

import asyncio
import math
import ssl
from typing import TYPE_CHECKING, cast

from zmq_offload.errors import OffloadError, ResourceExhausted, Unimplemented
from zmq_offload.gateway.access.decisions import HEALTH, STRANGERS_BYTES
from zmq_offload.gateway.access.tls import peer_of
from zmq_offload.gateway.grpc.calls import Context, Streaming
from zmq_offload.gateway.grpc.heads import CallHead
from zmq_offload.gateway.grpc.limits import RATE
from zmq_offload.gateway.grpc.responses import failure, no_call
from zmq_offload.gateway.grpc.running import Running
from zmq_offload.gateway.grpc.streaming import StreamingCall
from zmq_offload.gateway.grpc.unary import UnaryCall
from zmq_offload.gateway.http2.connection import Connection as Http2
from zmq_offload.gateway.http2.errors import ErrorCode
from zmq_offload.gateway.http2.events import Begun, Data, Drained, Event, Reset
from zmq_offload.net.grants import Grant

if TYPE_CHECKING:
    from zmq_offload.gateway.grpc.server import GrpcServer

_JOINED_BYTES = 64 * 1024
"""Output of at most this size is joined to one write: the copy costs less than a vector of buffers."""

_DIRECT_BYTES = 32 * 1024
"""A piece of a message of at least this size is received into the message's own memory."""

_LONG_BYTES = 128 * 1024
"""After a piece of a message of at least this size, another one is expected. `_FIRST_BYTES` are read first then: what
comes of a message together with its head is copied, and should be little."""

_FIRST_BYTES = 16 * 1024
"""More than the heads of a call have."""

_WRITTEN_AHEAD = 4 << 20
"""With more output that the system does not take, a connection is not read."""

_TICK = 1.0
"""Seconds after which a client may do again what floods a connection."""

_SILENCE = 0.5
"""Seconds for which a draining connection waits for the client's word that it heard of it."""

_FAREWELL = 0.5
"""Seconds for which a drained connection waits for the client to close it. gRPC's own library takes the end of a
connection for the end of a call whose status has just arrived, and tells that instead of the status."""

_TOLD = 16
"""Connections beyond the limit that are told why they end; they take files until their clients have seen it."""

_STRANGERS_CALLS = 16
"""Calls at once of a connection that gets another one without a credential."""

_LINGER = 5.0
"""Seconds for which a connection that has ended is read on, so that it is not reset."""


class Connection(asyncio.BufferedProtocol):
    """The protocol of one connection. `due` is when `overdue` is to be called."""

    __slots__ = (
        "_active",
        "_buffer",
        "_buffered",
        "_calls",
        "_closed",
        "_ending",
        "_filling",
        "_flushing",
        "_full",
        "_joins",
        "_late",
        "_lost",
        "_mark",
        "_no_calls",
        "_peer",
        "_tick",
        "_transport",
        "_unsent",
        "_written",
        "due",
        "http2",
        "limits",
        "server",
    )

    _transport: asyncio.Transport

    def __init__(self, server: GrpcServer) -> None:
        self.server = server
        self.limits = server.limits
        self.http2: Http2[CallHead] = Http2(server.interpret, server.http2_limits)
        self.due = math.inf
        self._calls: dict[int, Running] = {}
        self._no_calls: dict[int, bytes] = {}  # responses to what is no call; curl wants them after all its data
        self._filling: Running | None = None  # the call whose message is received directly
        self._buffer = server.buffer  # where all else is received
        self._ending = self._closed = False
        self._full = False  # the system does not take the output as fast as it is written
        self._lost = False
        self._buffered = 0  # bytes that the system had not taken at the last look
        self._unsent = 0  # bytes of replies that wait for the client, as the server counts them
        self._flushing = False  # `_write` is going to be called
        self._tick = self._active = server.now()
        self._written = 0
        self._late = math.inf  # when the rest of a frame, or of a call's headers, has to be here
        self._mark: int | None = None  # bytes that the system took until the last look, if it did not take all

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_WRITTEN_AHEAD)
        self._peer = peer_of(transport)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self._joins = math.inf if tls else _JOINED_BYTES  # each buffer would become a record of its own
        self.due = self.server.now() + self.limits.receive
        fits = self.server.opened(self)
        if tls and tls.selected_alpn_protocol() != "h2":
            self.http2.close(ErrorCode.INADEQUATE_SECURITY, "the client does not offer h2 by ALPN")
        elif not fits:
            if self.server.connections > self.limits.connections + _TOLD:
                self._transport.abort()
                return
            self.http2.close(ErrorCode.ENHANCE_YOUR_CALM, f"the gateway has {self.limits.connections} connections")
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ending = True
        self._lost = True
        self._count()
        self.server.closed(self)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.gone()

    def pause_writing(self) -> None:
        self._full = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        self._transport.resume_reading()
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        self._filling = None  # perhaps nothing came into the memory that was ready before
        if arriving := self.http2.arriving():
            number, size = arriving
            if size >= _DIRECT_BYTES and (call := self._calls.get(number)) and not call.over:
                memory = call.assembler.memory()
                if memory is not None and len(memory) >= _DIRECT_BYTES:
                    self._filling = call
                    if size >= _LONG_BYTES:
                        self._buffer = self.server.buffer[:_FIRST_BYTES]
                    return memory[:size]
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        now = self.server.now()
        if now - self._tick > _TICK:
            self._tick = now
            self.http2.tick()
        self._flushing = True  # what is caused by these bytes is written afterwards
        call, self._filling = self._filling, None
        if call:
            call.filled(nbytes)
            self._handle(self.http2.arrived(nbytes))
        else:
            data = self._buffer[:nbytes]
            if nbytes == _FIRST_BYTES:  # unless the rest is a long piece
                self._buffer = self.server.buffer
            self._handle(self.http2.receive(data))
        if not self.http2.partial:
            self._late = math.inf
        elif self._late == math.inf:
            self._late = now + self.limits.receive
            self.due = min(self.due, self._late)
        self._write()

    # What the server calls.

    def overdue(self, now: float) -> None:
        """`due` has passed."""
        if self._ending and not self._closed:
            self._close()
            return
        if self._ending or self._stuck():
            self._transport.abort()
            return
        if self.server.draining:
            self.http2.close(ErrorCode.NO_ERROR)
        self.due = now + self.limits.receive
        for number in list(self._no_calls):
            self.http2.end(number, self._no_calls.pop(number))
        if self._calls:
            for call in [call for call in self._calls.values() if call.slow()]:
                call.expire()
        elif now >= self._late:
            self.http2.close(ErrorCode.NO_ERROR, "the headers of a call are late")
        elif not self.http2.greeted:
            self.http2.close(ErrorCode.NO_ERROR, "the preface of HTTP/2 is late")
        elif now >= self._active + self.limits.idle:
            self.http2.close(ErrorCode.NO_ERROR, "the connection is idle")
        else:
            self.due = min(self._active + self.limits.idle, self._late)
        self.flush()

    def drain(self) -> None:
        """Finish the calls, take no more, and close then."""
        self.http2.drain()
        for call in list(self._calls.values()):
            call.drain()
        self.due = min(self.due, self.server.now() + _SILENCE)
        self.flush()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    # What calls call.

    def flush(self) -> None:
        """Write what there is to write, at the end of this turn of the loop: its replies share a system call."""
        if not self._flushing:
            self._flushing = True
            self.server.loop.call_soon(self._write)

    def _write(self) -> None:
        self._flushing = False
        if self._ending:
            return
        small = self.http2.size <= self._joins
        if out := self.http2.take():
            if small:
                joined = b"".join(out)
                self._written += len(joined)
                self._transport.write(joined)
            else:
                self._written += sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in out)
                self._transport.writelines(out)
            self.server.writing.add(self)
        self._count()
        if self.http2.finished:
            self._end()

    def look(self) -> None:
        """See what the system has not taken since the last look; it takes most output within the turn of the loop."""
        self._buffered = self._transport.get_write_buffer_size()
        if not self._buffered:
            self.server.writing.discard(self)
        self._count()

    def _count(self) -> None:
        """Count replies that wait for the client. With too many, the gateway takes no more messages."""
        buffered = self._transport.get_write_buffer_size() if self._full else self._buffered
        unsent = 0 if self._lost else self.http2.all_held + buffered
        self.server.held += unsent - self._unsent
        self._unsent = unsent

    def ended(self, number: int) -> None:
        """A call is over, and all of it is sent."""
        if self._calls.pop(number, None):
            self._active = self.server.now()

    def abandon(self, number: int) -> None:
        """End a stream of which not all is sent."""
        self.http2.reset(number, ErrorCode.CANCEL)
        self.ended(number)

    def grant(self, head: CallHead) -> Grant:
        """What a call may use now. Raises Unauthenticated."""
        return self.server.access.check(head.metadata.get("authorization"), self._peer, head.path)

    # Events.

    def _handle(self, events: list[Event[CallHead]]) -> None:
        for event in events:
            if isinstance(event, Begun):
                self._begin(event.stream, event.head, event.ended)
            elif isinstance(event, Data):
                if call := self._calls.get(event.stream):
                    call.data(event.data, event.ended)
                elif event.ended and (block := self._no_calls.pop(event.stream, None)):
                    self.http2.end(event.stream, block)
            elif isinstance(event, Drained):
                if call := self._calls.get(event.stream):
                    call.drained()
            elif isinstance(event, Reset):
                self._no_calls.pop(event.stream, None)
                if call := self._calls.pop(event.stream, None):
                    self._active = self.server.now()
                    call.gone()

    def _begin(self, number: int, head: CallHead, ended: bool) -> None:
        if head.status != 200:
            if ended:
                self.http2.end(number, no_call(head.status))
            else:
                self._no_calls[number] = no_call(head.status)
            return
        if head.error:  # is not raised, because the head is used again
            self.http2.end(number, failure(head.error, begun=False))
            return
        try:
            call = self._call(number, head)
        except OffloadError as error:
            self.http2.end(number, failure(error, begun=False))
            return
        if not call.over or call.unsent:
            self._calls[number] = call
            if not call.over:
                call.begin()
            if ended:
                call.data(b"", True)
            if self.server.draining:  # the client has not heard of it yet
                call.drain()

    def _call(self, number: int, head: CallHead) -> Running:
        context = Context(self.grant(head), head.timeout, head.metadata)
        if context.grant is HEALTH:
            self._check_stranger(head)
        method = self.server.methods.get(head.path)
        if method is None:
            raise Unimplemented(f"method {head.path!r} is not here")
        if isinstance(method, Streaming):
            return StreamingCall(self, number, head, context, method)
        return UnaryCall(self, number, head, context, method)

    def _check_stranger(self, head: CallHead) -> None:
        """Raise ResourceExhausted if a client without a credential takes more than a probe needs."""
        if head.size > STRANGERS_BYTES:
            raise ResourceExhausted(
                f"the call has {head.size} bytes of metadata; at most {STRANGERS_BYTES} are taken without a credential"
            )
        if len(self._calls) >= _STRANGERS_CALLS:
            raise ResourceExhausted(f"the connection has {len(self._calls)} calls; send a credential with more")

    # The end.

    def _stuck(self) -> bool:
        """Whether the client reads so slowly that nearly nothing was sent since the last look."""
        waiting = self._transport.get_write_buffer_size()
        before, self._mark = self._mark, self._written - waiting if waiting else None
        return before is not None and self._mark is not None and self._mark - before < RATE * self.limits.receive

    def _end(self) -> None:
        """Close the connection, or have the client close it."""
        self._ending = True
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.gone()
        if self.server.draining and not self.http2.failed:
            self.due = self.server.now() + _FAREWELL
        else:
            self._close()

    def _close(self) -> None:
        """Close the connection when all is sent. To close it with bytes unread would reset it."""
        self._closed = True
        self.due = self.server.now() + _LINGER
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()
