"""ModelStreamInfer: requests and their answers in one stream. Pure.

A request that has an id is answered as soon as its answer is there. A client that gives no ids can tell answers apart
by their order only, so requests without an id are answered in their order. A request that fails is answered with an
error message, and the stream lives on; only bytes that are no message end it.
"""

from __future__ import annotations

from collections import deque

from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Buffer, Buffers, Cancel
from zmq_offload.gateway.grpc.calls import Context, Writer
from zmq_offload.gateway.oip.grpc_inference import Inference
from zmq_offload.gateway.protobuf.infer_request import divide, parse
from zmq_offload.gateway.protobuf.infer_response import write_answer, write_fault
from zmq_offload.protobuf.messages import Malformed

MOST = 256
"""Requests of one stream that are under way; the client waits with more."""

MOST_BYTES = 64 << 20
"""Their messages' bytes. One request may have more."""


class InferStream:
    """The requests of one client's stream."""

    def __init__(self, inference: Inference, context: Context, writer: Writer) -> None:
        self._inference = inference
        self._context = context
        self._writer = writer
        self._open: set[_Run] = set()
        """Requests whose answers are not sent."""
        self._bytes = 0
        """Of their messages."""
        self._in_order: deque[_Run] = deque()
        """Those without an id."""
        self._paused = self._half_closed = self._over = False

    def message(self, data: Buffer) -> None:
        """A request arrived."""
        if self._over:
            return
        run = _Run(self, len(data))
        self._open.add(run)
        self._bytes += run.size
        try:
            divided = divide(data)
            run.id = parse(divided.rest).id if divided.id is None else divided.id
            if not run.id:
                self._in_order.append(run)
            run.cancel = self._inference.start(divided, self._context, run.answered)
        except Malformed as error:
            self.canceled()
            self._writer.close(error)
        except OffloadError as error:
            run.answered(error)
        if self._full() and not self._paused and not self._over:
            self._paused = True
            self._writer.pause()

    def half_closed(self) -> None:
        """The client sends no more requests. The stream ends after the last answer."""
        self._half_closed = True
        self._close_if_done()

    def canceled(self) -> None:
        """The client is gone. Its requests are taken back."""
        self._over = True
        for run in self._open:
            if run.cancel is not None:
                run.cancel()
        self._open.clear()
        self._in_order.clear()

    def answered(self, run: _Run) -> None:
        """The answer of a request is there."""
        if self._over:
            return
        if run.id or not self._in_order:
            self._send(run)
        while self._in_order and self._in_order[0].answer is not None:
            self._send(self._in_order.popleft())
        if self._paused and not self._full():
            self._paused = False
            self._writer.resume()
        self._close_if_done()

    def _send(self, run: _Run) -> None:
        self._open.discard(run)
        self._bytes -= run.size
        self._writer.send(run.answer or ())

    def _full(self) -> bool:
        return len(self._open) >= MOST or self._bytes >= MOST_BYTES

    def _close_if_done(self) -> None:
        if self._half_closed and not self._open and not self._over:
            self._over = True
            self._writer.close()


class _Run:
    """A request of a stream, and its answer when that is there."""

    __slots__ = ("_stream", "answer", "cancel", "id", "size")

    def __init__(self, stream: InferStream, size: int) -> None:
        self._stream = stream
        self.size = size
        self.id = ""
        self.cancel: Cancel | None = None
        self.answer: Buffers | None = None

    def answered(self, answer: list[Buffer] | OffloadError) -> None:
        """Take what came of the request."""
        self.answer = write_fault(answer.message, self.id) if isinstance(answer, OffloadError) else write_answer(answer)
        self._stream.answered(self)
