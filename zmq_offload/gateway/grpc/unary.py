"""Calls with one message each way."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from zmq_offload.errors import Internal, InvalidArgument, OffloadError
from zmq_offload.gateway.calls import FAILED, Buffer, Buffers, Cancel
from zmq_offload.gateway.grpc.calls import Context, Unary
from zmq_offload.gateway.grpc.codings import Decoding
from zmq_offload.gateway.grpc.heads import CallHead
from zmq_offload.gateway.grpc.messages import Message
from zmq_offload.gateway.grpc.responses import SUCCESS
from zmq_offload.gateway.grpc.running import Running

if TYPE_CHECKING:
    from zmq_offload.gateway.grpc.connection import Connection

_log = logging.getLogger(__name__)


class UnaryCall(Running):
    """A call with one message each way."""

    __slots__ = ("_cancel", "_coded", "_message", "_method")

    def __init__(self, connection: Connection, number: int, head: CallHead, context: Context, method: Unary) -> None:
        super().__init__(connection, number, head, context)
        self._method = method
        self._message: Message | None = None
        self._coded: Decoding | None = None  # the message while it is decompressed
        self._cancel: Cancel | None = None

    def _take(self, message: Message) -> None:
        if self._message is not None:
            raise InvalidArgument("the call has more than one message; its method takes one")
        self._message = message

    def _end(self) -> None:
        message, self._message = self._message, None
        if message is None:
            raise InvalidArgument("the call has no message; its method takes one")
        if message.compressed:
            self._coded = self._decoder(message)
            self._go_on()
        else:
            self._run(message.data)

    def _go_on(self) -> None:
        if self._coded is None or self.over:
            return
        try:
            if self._decode(self._coded):
                message, self._coded = memoryview(self._coded.message), None
                self._run(message)
        except OffloadError as error:
            self.fail(error)

    def _run(self, message: Buffer) -> None:
        self._keep_time()
        try:
            cancel = self._method(message, self._context, self._reply)
        except Exception:
            _log.exception("the call of %s failed", self._head.path)
            self._reply(Internal(FAILED))
            return
        if not self.over:
            self._cancel = cancel

    def _reply(self, reply: Buffers | OffloadError) -> None:
        if self.over:
            return
        self._cancel = None
        if isinstance(reply, OffloadError):
            self.fail(reply)
        elif self._send(reply):
            self._finish(SUCCESS)

    def _canceled(self) -> None:
        self._coded = None
        cancel, self._cancel = self._cancel, None
        if cancel:
            cancel()

    def _expects(self) -> bool:
        return True

    def _allowance(self) -> int:
        return self.assembler.missing
