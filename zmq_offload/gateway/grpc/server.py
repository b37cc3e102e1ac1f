"""What the connections of a gRPC port share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from zmq_offload.gateway.access.decisions import Access
from zmq_offload.gateway.calls import Memory, own_memory
from zmq_offload.gateway.connections import Connections
from zmq_offload.gateway.grpc.calls import Methods
from zmq_offload.gateway.grpc.connection import Connection
from zmq_offload.gateway.grpc.heads import CallHead, call_head
from zmq_offload.gateway.grpc.limits import Limits
from zmq_offload.gateway.http2 import settings
from zmq_offload.gateway.http2.headers import RequestHead

_BUFFER_BYTES = 256 * 1024
"""Bytes that are read at once. All connections share the buffer, since each read is handled before the next."""


class GrpcServer(Connections[Connection]):
    """Serves gRPC. Its `protocol` is a factory for `loop.create_server`, with or without TLS.

    All of it belongs to the running loop, in which it has to be made.

    Parameters
    ----------
    methods : Methods
    access : Access
        Decides who may use which models.
    limits : Limits
    memory : Memory
        Gives memory for long messages.

    Attributes
    ----------
    held : int
        Bytes of all messages that are held.
    draining : bool
        Whether connections take no more calls.
    """

    def __init__(self, methods: Methods, access: Access, limits: Limits, memory: Memory = own_memory) -> None:
        super().__init__(limits.connections)
        self.methods = methods
        self.access = access
        self.limits = limits
        self.memory = memory
        # A call with too much metadata gets an answer. Only beyond four times of it the connection ends.
        self.http2_limits = settings.Limits(streams=limits.streams, header_block=4 * limits.header_bytes)
        self.buffer = memoryview(bytearray(_BUFFER_BYTES))
        self.writing: set[Connection] = set()  # those that wrote, of which the system may not have taken all
        self._work: deque[Callable[[], None]] = deque()

    def protocol(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self)

    # What connections call.

    def interpret(self, head: RequestHead) -> CallHead:
        """What a request's head says to gRPC."""
        return call_head(head, self.limits.header_bytes)

    def closed(self, connection: Connection) -> None:
        super().closed(connection)
        self.writing.discard(connection)

    def later(self, work: Callable[[], None]) -> None:
        """Do a part of long work, such as compression. One part is done in a turn of the loop, of all that wait."""
        if not self._work:
            self.loop.call_soon(self._work_on)
        self._work.append(work)

    def _work_on(self) -> None:
        work = self._work.popleft()
        if self._work:
            self.loop.call_soon(self._work_on)
        work()

    def sweep(self) -> None:
        """End what has passed its deadline, and see what the system has taken of what was written."""
        for connection in list(self.writing):
            connection.look()
        super().sweep()
