"""What the connections of an HTTP port share."""

from __future__ import annotations

import asyncio
from email.utils import formatdate

from zmq_offload.gateway.access.decisions import Access
from zmq_offload.gateway.http.connection import Connection
from zmq_offload.gateway.http.limits import Limits
from zmq_offload.gateway.http.messages import Handler

_BUFFER_BYTES = 64 * 1024
"""A request of up to this size arrives in one read."""

_SWEEP = 1.0
"""Seconds between looks at all deadlines. 10,000 connections take 0.3 ms."""


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

    def __init__(self, handler: Handler, access: Access, limits: Limits | None = None) -> None:
        self.handler = handler
        self.access = access
        self.limits = limits or Limits()
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.buffer = bytearray(_BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.held = 0
        self.draining = False
        self.date = formatdate(usegmt=True)
        self._connections: set[Connection] = set()
        self._sweeping = False

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def protocol(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self)

    def drain(self) -> None:
        """Close connections that wait for a request, and each other one after its answer.

        All are closed when `connections` is 0.
        """
        self.draining = True
        for connection in list(self._connections):
            connection.drain()

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in list(self._connections):
            connection.abort()

    # What connections call.

    def opened(self, connection: Connection) -> bool:
        """Whether a new connection is within the limit."""
        self._connections.add(connection)
        if not self._sweeping:
            self._sweeping = True
            self._sweep()
        return len(self._connections) <= self.limits.connections

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def _sweep(self) -> None:
        """End what has passed its deadline. One timer for all, since deadlines move with each request."""
        self.date = formatdate(usegmt=True)
        now = self.now()
        for connection in [one for one in self._connections if one.due <= now]:
            connection.overdue(now)
        self._sweeping = bool(self._connections)
        if self._sweeping:
            self.loop.call_later(_SWEEP, self._sweep)
