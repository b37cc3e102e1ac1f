"""What all calls that run on a connection share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from zmq_offload.errors import DeadlineExceeded, Internal, InvalidArgument, OffloadError
from zmq_offload.gateway.access.decisions import HEALTH, STRANGERS_BYTES
from zmq_offload.gateway.calls import FAILED, Buffer, Buffers
from zmq_offload.gateway.grpc.calls import Context
from zmq_offload.gateway.grpc.codings import IDENTITY, Decoding, Encoding
from zmq_offload.gateway.grpc.heads import CallHead
from zmq_offload.gateway.grpc.limits import RATE
from zmq_offload.gateway.grpc.messages import Assembler, Message, prefixed, size_of
from zmq_offload.gateway.grpc.responses import HEADS, exhausted, failure

if TYPE_CHECKING:
    from zmq_offload.gateway.grpc.connection import Connection

_log = logging.getLogger(__name__)


class Running(ABC):
    """A call from its head to its trailers. `over`: nothing of the client matters any more."""

    __slots__ = (
        "_begun",
        "_complete",
        "_connection",
        "_context",
        "_decoding",
        "_expires",
        "_head",
        "_held",
        "_mark",
        "_number",
        "_outbox",
        "_outbox_bytes",
        "_received",
        "_trailers",
        "assembler",
        "over",
    )

    def __init__(self, connection: Connection, number: int, head: CallHead, context: Context) -> None:
        self._connection = connection
        self._number = number
        self._head = head
        self._context = context
        timeout = context.timeout
        self._expires = None if timeout is None else connection.server.now() + timeout
        self._begun = False  # the head of the response is sent
        self._complete = False  # the client sends nothing more
        self._held = 0  # bytes that the server counts for this call
        self._received = 0
        self._mark: tuple[int, int] | None = None
        self._decoding = False  # `_decode_on` is going to be called
        self._outbox: list[Encoding] = []  # messages that are being compressed
        self._outbox_bytes = 0  # as the server counts them
        self._trailers: bytes | None = None  # what ends the response after them
        stranger = context.grant is HEALTH
        most = STRANGERS_BYTES if stranger else connection.limits.message_bytes
        self.assembler = Assembler(most, not stranger, connection.server.memory)
        self.over = False

    # What the connection calls.

    def begin(self) -> None:
        """The connection has the call: count its metadata, which lives as long as it does."""
        try:
            self._hold(self._head.size)
        except OffloadError as error:
            self.fail(error)

    def data(self, data: Buffer, ended: bool) -> None:
        """Data arrived; `ended`: it is the last."""
        if self.over:
            return
        try:
            self._hold(len(data))
            for message in self.assembler.feed(data):
                self._take(message)
            self._arrived(ended)
        except OffloadError as error:
            self.fail(error)

    def filled(self, size: int) -> None:
        """Data was put into the message's memory."""
        try:
            self._hold(size)
            if message := self.assembler.filled(size):
                self._take(message)
                self._arrived(False)
        except OffloadError as error:
            self.fail(error)

    def gone(self) -> None:
        """The client, or its connection, is gone."""
        self._drop_outbox()
        if not self.over:
            self._close()
            self._canceled()

    @property
    def unsent(self) -> bool:
        """Whether there is more to send than what is sent."""
        return bool(self._outbox) or self._connection.http2.held(self._number) > 0

    def drained(self) -> None:
        """All that flow control held back is sent."""
        if self.over and not self._outbox:
            self._connection.ended(self._number)
        elif not self.over:
            self._go_on()

    def drain(self) -> None:  # noqa: B027  (a call that ends by itself has nothing to do)
        """The gateway stops: end as soon as that is possible without losing what was taken."""

    def slow(self) -> bool:
        """Whether a message, or a reply, made no progress since the last look. It is looked at seldom."""
        held = self._connection.http2.held(self._number)
        partial = not self.over and not self._complete and (self.assembler.partial or self._expects())
        mark = (self._received if partial else 0, held)
        before, self._mark = self._mark, mark if partial or held else None
        if before is None or self._mark is None:
            return False
        enough = RATE * self._connection.limits.receive
        return (partial and mark[0] - before[0] < enough) or (held > 0 and before[1] - held < enough)

    def expire(self) -> None:
        """The client is too slow."""
        self._give_up(DeadlineExceeded("the message, or the reading of the reply, makes no progress"))

    # What the kinds of calls do.

    @abstractmethod
    def _take(self, message: Message) -> None:
        """A message is whole."""

    @abstractmethod
    def _end(self) -> None:
        """The client has sent all its messages."""

    @abstractmethod
    def _canceled(self) -> None:
        """Tell the method that nobody waits for it."""

    @abstractmethod
    def _expects(self) -> bool:
        """Whether a message has to come soon."""

    @abstractmethod
    def _allowance(self) -> int:
        """How many more bytes the client may send now."""

    @abstractmethod
    def _go_on(self) -> None:
        """Go on with messages that are here: there is more of one, or all replies are sent."""

    # What they share.

    def fail(self, error: OffloadError) -> None:
        """End the call with an error."""
        self._finish(failure(error, begun=self._begun))

    def _arrived(self, ended: bool) -> None:
        """Data was taken."""
        if self.over:
            return
        if ended:
            self._complete = True
            if self.assembler.partial:
                raise InvalidArgument("the call ends within a message")
            self._end()
        elif allowance := self._allowance():
            self._connection.http2.allow(self._number, allowance)

    def _keep_time(self) -> None:
        """Before a method gets a message: tell it what is left of the client's deadline now."""
        if self._expires is not None:
            self._context.timeout = self._expires - self._connection.server.now()

    def _give_up(self, error: OffloadError) -> None:
        """End the call with an error, and without what is not sent."""
        self._drop_outbox()
        if self.over:
            self._connection.abandon(self._number)
        else:
            self._canceled()
            self.fail(error)

    def _later(self, work: Callable[[], None]) -> None:
        """Do a part of long work, so that other calls do not wait for all of it."""
        self._connection.server.later(partial(self._do, work))

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # for instance MemoryError; the client must get an answer
            _log.exception("the call of %s failed", self._head.path)
            self._give_up(Internal(FAILED))
            self._connection.flush()

    def _decoder(self, message: Message) -> Decoding:
        return Decoding(self._head.coding, message.data, self._connection.limits.message_bytes)

    def _decode(self, decoding: Decoding) -> bool:
        """Decompress a part of a message. Whether it is whole; if it is not, `_go_on` is called when more is."""
        if self._decoding:
            return False
        before = len(decoding.message)
        done = decoding.step()
        self._hold(len(decoding.message) - before)
        if not done:
            self._decoding = True
            self._later(self._decode_on)
        return done

    def _decode_on(self) -> None:
        self._decoding = False
        self._go_on()

    def _send(self, parts: Buffers) -> bool:
        """Send a message. False if so much is held that the call ends instead."""
        http2, coding = self._connection.http2, self._head.reply_coding
        server = self._connection.server
        if server.held - self._held > server.limits.held_bytes:
            self.fail(exhausted(server.limits))
            return False
        if not self._begun:
            self._begun = True
            http2.headers(self._number, HEADS[coding])
        if coding == IDENTITY:
            http2.data(self._number, prefixed(parts))
            return True
        self._outbox.append(Encoding(coding, parts))
        size = size_of(parts)
        self._outbox_bytes += size
        server.held += size
        if len(self._outbox) == 1:
            self._encode()
        return True

    def _encode(self) -> None:
        """Compress a part of what is to be sent, and send what is ready."""
        while self._outbox:
            if not self._outbox[0].step():
                self._later(self._encode_on)
                return
            self._connection.http2.data(self._number, prefixed(self._outbox.pop(0).parts, True))
        self._drop_outbox()

    def _drop_outbox(self) -> None:
        self._outbox.clear()
        self._connection.server.held -= self._outbox_bytes
        self._outbox_bytes = 0

    def _encode_on(self) -> None:
        self._encode()
        if self._trailers is not None and not self._outbox:
            self._end_response(self._trailers)
        elif not self.unsent:
            self._go_on()
        self._connection.flush()

    def _finish(self, trailers: bytes) -> None:
        """End the response."""
        self._close()
        if self._outbox:
            self._trailers = trailers
        else:
            self._end_response(trailers)
        self._connection.flush()

    def _end_response(self, trailers: bytes) -> None:
        self._connection.http2.end(self._number, trailers)
        if not self._connection.http2.held(self._number):
            self._connection.ended(self._number)

    def _hold(self, size: int) -> None:
        """Count bytes that are held."""
        server = self._connection.server
        self._received += size
        self._held += size
        server.held += size
        if server.held > server.limits.held_bytes:
            raise exhausted(server.limits)

    def _free(self, size: int) -> None:
        """Bytes that `_hold` counted are the method's now."""
        if not self.over:
            self._connection.server.held -= size
            self._held -= size

    def _close(self) -> None:
        self._free(self._held)
        self.over = True
