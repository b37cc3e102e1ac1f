"""A connection to the brokers that the thread which drives a client polls itself, without libzmq: no thread of its own,
and few system calls.

`zmq_offload.net.line` makes the connection, keeps it alive and makes it again. It has no keys.
"""

from __future__ import annotations

import errno
import math
import select
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

import zmq

from zmq_offload.client.link import Polled, decoded
from zmq_offload.client.memory import Offer, own
from zmq_offload.client.session import RetryPolicy, Send
from zmq_offload.net import transport
from zmq_offload.net.endpoints import check_brokers
from zmq_offload.net.line import Change, Event, Line
from zmq_offload.net.sharedmemory.references import FIRST
from zmq_offload.net.sharedmemory.sharing import SHARED_FROM
from zmq_offload.net.stream import Stream
from zmq_offload.net.zmtp import Scratch, Sharer
from zmq_offload.protocol import messages as wire

_NO_FILES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

_POLLIN, _POLLOUT = select.POLLIN, select.POLLOUT

_inherited: list[object] = []
"""Connections of the parent process, which a forked child does not touch."""


class StreamLink(Polled):
    """A connection on a plain socket to one of several brokers. Not thread-safe.

    Raises InvalidArgument for endpoints and numbers that cannot be used, Unavailable if the system has no sockets left.

    While there is no connection, requests wait until their calls end.
    """

    stale = 0.1
    """Seconds without a look after which the connection is looked at before something is sent: it may have ended."""

    def __init__(
        self, broker: str | Sequence[str], policy: RetryPolicy | None, max_frame_bytes: int, arena_bytes: int = 0
    ) -> None:
        super().__init__(check_brokers(broker), policy, max_frame_bytes)
        self._offer = Offer(arena_bytes, lambda: None if self._line.stream is None else self._line.stream.socket)
        self._placed: dict[int, Sequence[Any]] = {}  # payloads that lie in shared memory, by the call's number
        self._scratch = Scratch()
        self._inbox: list[list[Any]] = []
        self._waiting: dict[int, Send] = {}  # by the call's number; 0 is that of the last Ping
        self._lent: dict[int, int] = {}  # where messages with memory of callers end in the stream, by the call's number
        self._poll = select.poll()
        self._polled: Stream | None = None  # what is polled for reading alone
        self._registered: int | None = None
        self._woken_by: int | None = None
        self._looked_at = 0.0
        self._open()

    # --- what the driver calls ------------------------------------------------------------------------------

    @property
    def due(self) -> float:
        return self._line.due

    @property
    def is_idle(self) -> bool:
        return not self.is_open or self._line.is_ready or self._line.descriptor is None

    def wake_by(self, descriptor: int) -> None:
        self._woken_by = descriptor
        self._poll.register(descriptor, _POLLIN)

    def wait(self, seconds: float | None) -> tuple[bool, bool]:
        line = self._line
        if line.stream is not self._polled or line.stream is None or line.blocked:
            self._register()
        woken = False
        if self._inbox:  # `send` received it
            seconds = 0
        ready = self._poll.poll(None if seconds is None else math.ceil(seconds * 1000))
        self._looked_at = now = time.monotonic()
        for descriptor, _ in ready:
            if descriptor == self._woken_by:
                woken = True
            else:
                line.ready(now)
        if line.due <= now:
            self.tick(now)
        return bool(self._inbox), woken

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self._line.due <= now:
            self._line.tick(now)
            if self._offer.memory is not None:
                self._offer.memory.tick(now)

    def receive(self, most: int) -> list[tuple[wire.ToClient, Sequence[object]]]:
        inbox, self._inbox = self._inbox, []
        messages: list[tuple[wire.ToClient, Sequence[object]]] = []
        for frames in inbox:
            message = decoded(frames[0])
            if message is None:
                continue
            payload: Sequence[Any] = frames[1:]
            messages.append(self._read(message, payload) if type(message) is wire.Result else (message, payload))
        return messages

    def _read(self, message: wire.Result, payload: Sequence[Any]) -> tuple[wire.ToClient, Sequence[object]]:
        """A message and its payload, without references to shared memory."""
        return own(self._offer.memory, message, payload)

    def send(self, action: Send) -> None:
        message = action.message
        line = self._line
        if not line.is_ready:
            self._keep(action)
            return
        now = time.monotonic()
        if now - self._looked_at > self.stale:
            self.wait(0)
            if not self._line.is_ready:
                self.send(action)
                return
        frames = [wire.encode(message), *action.payload]
        if len(frames) > FIRST and type(message) is wire.Request:
            if line.shares:
                frames = self._shared(message, action.payload)
            line.put(now, frames)
            if line.stream is not None and any(type(frame) is memoryview for frame in frames):
                self._lent[message.id] = line.stream.position
        else:
            line.put(now, frames)

    def _keep(self, action: Send) -> None:
        """Send it when that is possible, unless its call ends before."""
        message = action.message
        if isinstance(message, (wire.Request, wire.Query)):
            self._waiting[message.id] = action
        elif isinstance(message, wire.Ping):
            self._waiting[0] = action
        else:
            self._waiting.pop(message.id, None)  # what is canceled was not sent

    def _shared(self, request: wire.Request, payload: Sequence[Any]) -> list[Any]:
        """The frames of a request with references to its long tensors. Their copies stay until the call ends, over
        connections, too: a broker to which the client comes back may hold the request as it was first sent."""
        memory = self._offer.memory
        assert memory is not None
        placed = self._placed.get(request.id)
        if placed is None:
            placed = memory.placed(payload)
            if max(map(len, payload)) >= SHARED_FROM:
                self._placed[request.id] = placed
        return memory.lent([wire.encode(request), *placed])

    def flush(self) -> None:
        line = self._line
        line.flush(time.monotonic())
        if self._lent and not line.blocked:
            self._lent.clear()

    def refusal(self) -> str | None:
        why = self._line.refusal
        return None if why is None else f"the broker at {self.endpoint} {why}"

    def still_lent(self, number: int) -> Sequence[zmq.MessageTracker | Stream]:
        if self._waiting:
            self._waiting.pop(number, None)
        if self._placed:
            self._placed.pop(number, None)
        end = self._lent.pop(number, None) if self._lent else None
        if end is None:
            return ()
        self.flush()
        stream = self._line.stream
        return () if stream is None or stream.has_written(end) else (stream,)

    def reclaim(self, lent: Sequence[zmq.MessageTracker | Stream]) -> None:
        self.reconnect(self._endpoint)

    def reset(self) -> None:
        self._shut()
        self._placed.clear()

    def close(self, linger: int = 100) -> None:
        line = self._line
        if self.is_open and line.is_ready:
            self.flush()
            end = time.monotonic() + linger / 1000
            while line.blocked and (left := end - time.monotonic()) > 0:
                blocked = select.poll()
                blocked.register(cast("int", line.descriptor), _POLLOUT)
                blocked.poll(left * 1000)
                self.flush()
        self._shut()
        self._placed.clear()
        self._offer.end()

    def forget(self) -> None:
        self.is_open = False
        _inherited.append(self._line)

    # --- the connection -------------------------------------------------------------------------------------

    def _open(self) -> None:
        self.session.may_send = False
        self._line = Line(
            0,
            self.endpoint,
            self._happened,
            self._scratch,
            heartbeat=transport.CLIENTS_HEARTBEAT,
            max_frame_bytes=self._max_frame_bytes,
            most_messages=sys.maxsize,
            sharing=self._sharer(),
        )
        self._line.tick(time.monotonic())
        fault = self._line.fault
        if isinstance(fault, OSError) and fault.errno in _NO_FILES:
            self._line.close()
            raise self._unavailable(fault)
        self.is_open = True

    def _sharer(self) -> Sharer | None:
        """What shares memory with the broker."""
        return self._offer

    def _shut(self) -> None:
        self.is_open = False
        self._unregister()
        self._line.close()
        self._waiting.clear()
        self._lent.clear()
        self._inbox.clear()

    def _register(self) -> None:
        """Poll the connection as it is now."""
        line = self._line
        if line.descriptor != self._registered:
            self._unregister()
        self._polled = None if line.wants_to_write else line.stream
        self._registered = line.descriptor
        if self._registered is not None:
            reads = 0 if line.stream is None else _POLLIN
            self._poll.register(self._registered, reads | (_POLLOUT if line.wants_to_write else 0))

    def _unregister(self) -> None:
        if self._registered is not None:
            self._poll.unregister(self._registered)
        self._polled = self._registered = None

    def _happened(self, event: Event) -> None:
        what = event[1]
        if what is Change.LOST:
            self.session.may_send = False
            self._lent.clear()
        elif what is Change.CONNECTED:
            self.session.may_send = True
            waiting, self._waiting = self._waiting, {}
            for action in waiting.values():
                self.send(action)
            self.flush()
        else:
            self._inbox += what
