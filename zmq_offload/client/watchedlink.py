"""The connection of an `AsyncClient` without keys: a plain socket that an event loop watches.

The socket is not the loop's. So it can be made before a loop runs and be closed after its loop, which a transport of
asyncio cannot.
"""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections.abc import Callable, Sequence

from zmq_offload.client.link import Watched
from zmq_offload.client.session import RetryPolicy
from zmq_offload.client.streamlink import StreamLink
from zmq_offload.net.line import Change, Event
from zmq_offload.net.stream import Stream

_RECEIVED_A_TURN = 32
"""How often a connection receives before others have their turn, as libuv does."""


class WatchedLink(StreamLink, Watched):
    """A `StreamLink` that a loop watches, from the first `watch` on."""

    gathers = True
    stale = math.inf  # the loop always looks

    def __init__(
        self, broker: str | Sequence[str], policy: RetryPolicy | None, max_frame_bytes: int, arena_bytes: int = 0
    ) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # If this referred to it, a client would never be collected: what closes its connection would refer to it.
        self._ready: Callable[[], Callable[[], None] | None] = _nobody
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._descriptor: int | None = None  # what the loop watches
        self._watched: Stream | None = None  # whose it is; None while it is being connected
        self._writes = False  # whether it is watched for writing, too
        super().__init__(broker, policy, max_frame_bytes, arena_bytes)

    # --- what the driver calls ------------------------------------------------------------------------------

    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        first, self._loop, self._ready = self._loop is None, loop, weakref.WeakMethod(ready)
        if first and self.is_open and self._line.due <= time.monotonic():
            self._line.reconnect()  # nobody answered the broker's greeting in time
        self._follow()

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._unfollow()
        self._ready = _nobody

    def waiting(self) -> bool:
        return bool(self._inbox)

    @property
    def emptied(self) -> bool:
        return True

    def flush(self) -> None:
        super().flush()
        stream = self._line.stream
        if stream is not self._watched or (stream is not None and stream.blocked != self._writes):
            self._follow()

    def forget(self) -> None:
        # The reader stays: parent and child share the loop's descriptor, so removing it here would remove it there.
        super().forget()
        self._loop = self._descriptor = None
        self._cancel_timer()

    # --- in the loop ----------------------------------------------------------------------------------------

    def _open(self) -> None:
        super()._open()
        self.way = self._line

    def _shut(self) -> None:
        self._unfollow()
        super()._shut()

    def _on_event(self) -> None:
        if self.is_open:
            line, now = self._line, time.monotonic()
            if self._writes or line.stream is None:
                line.ready(now)
            else:
                line.receive(now)
            stream = line.stream
            if stream is not None and stream.filled:
                stream = self._receive_more(now)
            if (
                stream is None
                or stream is not self._watched
                or stream.blocked != self._writes
                or line.due != self._timer_at
            ):
                self._follow()
            if self._inbox and (ready := self._ready()) is not None:
                ready()

    def _receive_more(self, now: float) -> Stream | None:
        """Receive what is there in one turn of the loop, so that what it leads to is sent together."""
        line = self._line
        for _ in range(_RECEIVED_A_TURN):
            line.receive(now)
            if line.stream is None or not line.stream.filled:
                break
        return line.stream

    def _on_time(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        if self.is_open:
            self.tick(time.monotonic())
            self._follow()

    def _follow(self) -> None:
        """Watch the connection as it is now."""
        loop, line = self._loop, self._line
        if loop is None or loop.is_closed() or not self.is_open:
            return
        stream, writes = line.stream, line.wants_to_write
        # While it connects, a descriptor may be that of another socket by now.
        if stream is not None and stream is self._watched:
            if writes != self._writes:
                self._writes = writes
                if writes:
                    loop.add_writer(stream.fileno(), self._on_event)
                else:
                    loop.remove_writer(stream.fileno())
        else:
            self._remove()
            self._descriptor, self._watched, self._writes = line.descriptor, stream, writes
            if self._descriptor is not None:
                if stream is not None:
                    loop.add_reader(self._descriptor, self._on_event)
                if writes:
                    loop.add_writer(self._descriptor, self._on_event)
        if line.due != self._timer_at:
            self._cancel_timer()
            self._timer_at = line.due
            if line.due != math.inf:
                self._timer = loop.call_later(max(0.0, line.due - time.monotonic()), self._on_time)

    def _happened(self, event: Event) -> None:
        if event[1] is Change.LOST:
            self._remove()  # before it is closed: of a closed one, loops cannot remove the writer and keep the reader
        super()._happened(event)

    def _unfollow(self) -> None:
        self._remove()
        self._watched = None
        self._cancel_timer()

    def _remove(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf


def _nobody() -> None:
    """Nobody watches."""
