"""Calls with one message each way."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from zmq_offload.errors import Internal, InvalidArgument, OffloadError
from zmq_offload.gateway.calls import FAILED, Buffer, Buffers, Cancel
from zmq_offload.gateway.grpc.calls import Context, Unary
from zmq_offload.gateway.grpc.heads import CallHead
from zmq_offload.gateway.grpc.messages import Message
from zmq_offload.gateway.grpc.responses import SUCCESS
from zmq_offload.gateway.grpc.running import Running

if TYPE_CHECKING:
    from zmq_offload.gateway.grpc.connection import Connection

_log = logging.getLogger(__name__)


class UnaryCall(Running):
    """A call with one message each way."""

    __slots__ = ("_cancel", "_message", "_method")

    def __init__(self, connection: Connection, number: int, head: CallHead, context: Context, method: Unary) -> None:
        super().__init__(connection, number, head, context)
        self._method = method
        self._message: Buffer | None = None
        self._cancel: Cancel | None = None

    def drained(self) -> None:
        if self.over:
            self._connection.ended(self._number)

    def _take(self, message: Message) -> None:
        if self._message is not None:
            raise InvalidArgument("the call has more than one message; its method takes one")
        self._message = self._decoded(message)

    def _end(self) -> None:
        message = self._message
        if message is None:
            raise InvalidArgument("the call has no message; its method takes one")
        self._message = None
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
        else:
            self._send(reply)
            self._finish(SUCCESS)

    def _canceled(self) -> None:
        cancel, self._cancel = self._cancel, None
        if cancel:
            cancel()

    def _expects(self) -> bool:
        return True

    def _allowance(self) -> int:
        return self.assembler.missing
