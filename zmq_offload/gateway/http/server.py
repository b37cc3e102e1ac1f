"""What the connections of an HTTP port share."""

from __future__ import annotations

from email.utils import formatdate

from zmq_offload.gateway.access.decisions import Access
from zmq_offload.gateway.calls import Memory, own_memory
from zmq_offload.gateway.connections import Connections
from zmq_offload.gateway.http.connection import Connection
from zmq_offload.gateway.http.heads import Heads
from zmq_offload.gateway.http.limits import Limits
from zmq_offload.gateway.http.messages import Handler

_BUFFER_BYTES = 64 * 1024
"""A request of up to this size arrives in one read."""


class HttpServer(Connections[Connection]):
    """Serves HTTP/1.1. Its `protocol` is a factory for `loop.create_server`, with or without TLS.

    All of it belongs to the running loop, in which it has to be made.

    Parameters
    ----------
    handler : Handler
        Answers each request, such as a `Router`.
    access : Access
        Decides who may use which models.
    limits : Limits
    memory : Memory
        Gives memory for long bodies.

    Attributes
    ----------
    held : int
        Bytes of all request bodies that are held.
    draining : bool
        Whether each connection closes after its answer.
    """

    def __init__(self, handler: Handler, access: Access, limits: Limits, memory: Memory = own_memory) -> None:
        super().__init__(limits.connections)
        self.handler = handler
        self.access = access
        self.limits = limits
        self.memory = memory
        self.heads = Heads(limits)
        self.buffer = bytearray(_BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.date = formatdate(usegmt=True)

    def protocol(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self)

    def _tick(self) -> None:
        self.date = formatdate(usegmt=True)
        super()._tick()
