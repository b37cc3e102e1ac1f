"""The connection of a gateway without keys: the requests of many on one plain socket, tensors stay where they lie."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import zmq

from zmq_offload.client.link import in_place
from zmq_offload.client.session import Payload, RetryPolicy, Send
from zmq_offload.client.watchedlink import WatchedLink
from zmq_offload.net.pieces import PIECE_BYTES
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.net.stream import Stream
from zmq_offload.net.zmtp import Sharer
from zmq_offload.protocol import messages as wire

if TYPE_CHECKING:
    from zmq_offload.protocol.packed import Packed

_MOST_BYTES = 4 * 1024 * 1024
"""While more bytes are not written, requests wait until all are, and end with their calls: a broker that reads nothing
costs no more memory than that."""


class GatewayLink(WatchedLink):
    """A `WatchedLink` of the running event loop. A call's inputs may still be read when it has ended: nobody changes
    them.

    `sharing` is that of the process. If the broker is on this host, long tensors are passed through its memory, where
    they lie already, and outputs are read where they lie.
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        policy: RetryPolicy | None,
        max_frame_bytes: int,
        sharing: Sharing | None = None,
    ) -> None:
        self._sharing = sharing
        super().__init__(broker, policy, max_frame_bytes)

    # --- what the driver calls ------------------------------------------------------------------------------

    def packed_request(
        self,
        model: str,
        inputs: Packed,
        version: int | None,
        timeout: float,
        priority: int,
        label: str | None = None,
    ) -> tuple[str, Payload, float, int, int, bytes, str]:
        arguments = super().packed_request(model, inputs, version, timeout, priority, label)
        if self._sharing is None or not self._line.shares or len(arguments[1]) == 1:
            return arguments
        return model, self._sharing.placed(arguments[1]), *arguments[2:]

    def send(self, action: Send) -> None:
        line, message = self._line, action.message
        if not line.is_ready:
            self._keep(action)
            return
        if self._waiting and type(message) is wire.Cancel and self._waiting.pop(message.id, None) is not None:
            return  # the broker has not got what is canceled
        stream = line.stream
        assert stream is not None
        if stream.blocked and type(message) is not wire.Cancel and _has_to_wait(stream, action):
            self._keep(action)
            return
        frames = [wire.encode(message), *action.payload]
        if self._sharing is not None and line.shares:
            frames = self._sharing.lent(frames)
        stream.put(frames)

    def flush(self) -> None:
        line = self._line
        line.flush(time.monotonic())
        stream = line.stream
        if stream is not self._watched or (stream is not None and stream.blocked != self._writes):
            self._follow()

    def still_lent(self, number: int) -> Sequence[zmq.MessageTracker | Stream]:
        if self._waiting:
            self._waiting.pop(number, None)
        return ()

    # --- the connection -------------------------------------------------------------------------------------

    def _sharer(self) -> Sharer | None:
        return self._sharing

    def _read(self, message: wire.Result, payload: Sequence[Any]) -> tuple[wire.ToClient, Sequence[object]]:
        return in_place(self._sharing, message, payload)

    def _follow(self) -> None:
        super()._follow()
        while self._waiting and self._line.is_ready and not self._line.blocked:
            waiting, self._waiting = self._waiting, {}
            for action in waiting.values():
                self.send(action)
            self.flush()


def _has_to_wait(stream: Stream, action: Send) -> bool:
    """Whether too much is queued already that is before it. What is sent in pieces is not before short ones."""
    queued = stream.queued
    if queued <= _MOST_BYTES:
        return False
    return queued - stream.queued_in_pieces > _MOST_BYTES or sum(map(len, action.payload)) > PIECE_BYTES
