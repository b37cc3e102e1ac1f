"""Calls with any number of messages each way."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from zmq_offload.errors import Internal, OffloadError, Unauthenticated, Unavailable
from zmq_offload.gateway.access.decisions import HEALTH
from zmq_offload.gateway.calls import FAILED, Buffers
from zmq_offload.gateway.grpc.calls import Context, Stream, Streaming
from zmq_offload.gateway.grpc.codings import Decoding
from zmq_offload.gateway.grpc.heads import CallHead
from zmq_offload.gateway.grpc.messages import PREFIX_BYTES, Message
from zmq_offload.gateway.grpc.responses import HEADS, SUCCESS, failure
from zmq_offload.gateway.grpc.running import Running

if TYPE_CHECKING:
    from zmq_offload.gateway.grpc.connection import Connection

_log = logging.getLogger(__name__)


class StreamingCall(Running):
    """A call with any number of messages each way. It is the `Writer` of its method.

    Each message needs a credential that is still known, since a stream may live for days. While flow control holds a
    message to the client back, none of the client's messages is taken.

    A gateway that drains takes no more messages, and ends the call, which might never end otherwise, after the answers
    to those that the method has.
    """

    __slots__ = ("_asked", "_coded", "_draining", "_ended", "_paused", "_queue", "_stream", "_taking")

    def __init__(
        self, connection: Connection, number: int, head: CallHead, context: Context, method: Streaming
    ) -> None:
        super().__init__(connection, number, head, context)
        self._paused = self._taking = self._ended = self._draining = self._asked = False
        self._queue: deque[Message] = deque()
        self._coded: Decoding | None = None  # the first of them while it is decompressed
        self._stream: Stream | None = None
        try:
            self._stream = method.begin(context, self)
        except Exception:
            _log.exception("the call of %s failed", head.path)
            raise Internal(FAILED) from None

    # As a writer.

    def send(self, message: Buffers) -> None:
        if not self.over:
            self._send(message)
            self._connection.flush()

    def close(self, error: OffloadError | None = None) -> None:
        if not self.over:
            self._stream = None
            if error is None and self._draining:
                error = Unavailable("the gateway is stopping; it took nothing after what it has answered")
            self._finish(failure(error, begun=self._begun) if error else self._success())

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._go_on()

    # As a running call.

    def drain(self) -> None:
        if not self._complete:
            self._draining = self._ended = True
            self._queue.clear()  # thousands of small messages may wait until the method takes more
            self._coded = None
            self._go_on()

    def _take(self, message: Message) -> None:
        self._asked = True
        if self._draining:
            self._free(PREFIX_BYTES + len(message.data))
        else:
            self._queue.append(message)

    def _end(self) -> None:
        if not self._draining:
            self._ended = True
            self._pass_on()

    def _arrived(self, ended: bool) -> None:
        if not ended:
            self._pass_on()
        super()._arrived(ended)

    def _go_on(self) -> None:
        """Pass on what waited, and let the client send more."""
        if self.over or self._taking:
            return
        try:
            self._pass_on()
            if not self.over and not self._complete:
                self._connection.http2.allow(self._number, self._allowance())
                self._connection.flush()
        except OffloadError as error:
            self.fail(error)

    def _pass_on(self) -> None:
        """Give messages to the method, as long as it takes them."""
        stream = self._stream
        if self._taking or stream is None:
            return
        self._taking = True
        try:
            while self._queue and not (self._paused or self.over or self.unsent):
                message = self._queue[0]
                data = message.data
                if self._coded is None and self._connection.grant(self._head) != self._context.grant:
                    raise Unauthenticated("the models of this credential have changed; begin another stream")
                if message.compressed:
                    self._coded = self._coded or self._decoder(message)
                    if not self._decode(self._coded):
                        return
                    data, self._coded = memoryview(self._coded.message), None
                self._queue.popleft()
                self._keep_time()
                stream.message(data)
                self._free(PREFIX_BYTES + len(message.data) + (len(data) if message.compressed else 0))
            if self._ended and not self._queue and not self.over:
                self._ended = False
                stream.half_closed()
        except OffloadError:
            raise
        except Exception:
            _log.exception("the call of %s failed", self._head.path)
            raise Internal(FAILED) from None
        finally:
            self._taking = False

    def fail(self, error: OffloadError) -> None:
        self._canceled()
        super().fail(error)

    def _canceled(self) -> None:
        stream, self._stream = self._stream, None
        self._queue.clear()
        self._coded = None
        if stream:
            stream.canceled()

    def _expects(self) -> bool:
        return self._context.grant is HEALTH and not self._asked

    def _allowance(self) -> int:
        if self._queue:
            return self.assembler.missing
        return max(self.assembler.missing, self._connection.server.http2_limits.window)

    def _success(self) -> bytes:
        if self._begun:
            return SUCCESS
        self._begun = True
        self._connection.http2.headers(self._number, HEADS[self._head.reply_coding])
        return SUCCESS
