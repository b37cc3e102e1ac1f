"""What the connections of an HTTP port share."""

from __future__ import annotations

import asyncio
from email.utils import formatdate

from zmq_offload.gateway.access.decisions import Access
from zmq_offload.gateway.http.connection import Connection
from zmq_offload.gateway.http.heads import Heads
from zmq_offload.gateway.http.limits import Limits
from zmq_offload.gateway.http.messages import Handler

_BUFFER_BYTES = 64 * 1024
"""A request of up to this size arrives in one read."""

_SWEEP = 0.5
"""Seconds between looks at all deadlines. With 10,000 connections a look takes 0.14 ms."""


class HttpServer:
    """Serves HTTP/1.1. Its `protocol` is a factory for `loop.create_server`, with or without TLS.

    All of it belongs to the running loop, in which it has to be made.

    Parameters
    ----------
    handler : Handler
        Answers each request, such as a `Router`.
    access : Access
        Decides who may use which models.
    limits : Limits

    Attributes
    ----------
    held : int
        Bytes of all request bodies that are held.
    draining : bool
        Whether each connection closes after its answer.
    """

    def __init__(self, handler: Handler, access: Access, limits: Limits) -> None:
        self.handler = handler
        self.access = access
        self.limits = limits
        self.heads = Heads(limits)
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.buffer = bytearray(_BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.held = 0
        self.draining = False
        self.date = formatdate(usegmt=True)
        self._open: set[Connection] = set()
        self._ticking = False

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def protocol(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self)

    def drain(self) -> None:
        """Finish what runs, and close each connection then; one without a request after a moment of silence."""
        self.draining = True
        for connection in self._open:
            connection.drain()

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in list(self._open):
            connection.abort()

    # What connections call.

    def opened(self, connection: Connection) -> bool:
        """Whether there is room for a new connection."""
        self._open.add(connection)
        if not self._ticking:
            self._tick()
        if self.draining:
            connection.drain()
        return len(self._open) <= self.limits.connections

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)

    def sweep(self) -> None:
        """End what has passed its deadline."""
        now = self.now()
        for connection in [one for one in self._open if one.due <= now]:
            connection.overdue(now)

    def _tick(self) -> None:
        """One timer for all connections, since their deadlines move with each request."""
        self.date = formatdate(usegmt=True)
        self.sweep()
        self._ticking = bool(self._open)
        if self._ticking:
            self.loop.call_later(_SWEEP, self._tick)
