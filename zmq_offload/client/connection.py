"""The connection of clients with keys: a socket of libzmq."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, Protocol, TypeVar, cast

import zmq

from zmq_offload.client.link import Link, Polled, Watched, decoded
from zmq_offload.client.session import RetryPolicy, Send
from zmq_offload.errors import Internal
from zmq_offload.net import transport
from zmq_offload.net.endpoints import check_brokers
from zmq_offload.net.handshake import HandshakeMonitor, clients_security
from zmq_offload.net.stream import Stream
from zmq_offload.protocol import messages as wire

log = logging.getLogger("zmq_offload")

_FILES = 12
"""Files that a client opens: for libzmq's threads, the socket, its monitor, the connection and the driver."""

_BATCH = 64
"""Messages taken from the socket at a time."""

_RECLAIM_AT_EASE = 0.02
_RECLAIM_BY_FORCE = 5.0
"""Seconds to wait for lent memory: while its connection is open, and after it was closed."""


_STILL_READ = "the memory of a request's inputs is still being read after its connection was closed"

_inherited: list[object] = []
"""Sockets of the parent process. They cannot be closed here, and collecting them would give warnings."""


class Connection(Watched, Polled):
    """A socket to one of several brokers. Not thread-safe.

    Raises InvalidArgument for endpoints, numbers and keys that cannot be used, FailedPrecondition for unreadable keys,
    Unavailable if the system has no sockets left.

    With `reclaims`, the memory of a call's inputs is not read any more when the call has ended. Without, libzmq may
    still read it, and its owner does not change it.
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        policy: RetryPolicy | None,
        max_frame_bytes: int,
        key: str | os.PathLike[str] | None = None,
        broker_key: str | os.PathLike[str] | None = None,
        *,
        reclaims: bool = True,
    ) -> None:
        super().__init__(check_brokers(broker), policy, max_frame_bytes)
        self._security = clients_security(key, broker_key)
        self._reclaims = reclaims
        self._lent: dict[int, list[zmq.MessageTracker]] = {}
        self._watched: int | None = None
        self._woken_by: int | None = None
        self._check_files()
        try:
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        except zmq.ZMQError as error:
            raise self._unavailable(error) from None
        try:
            self._open()
        except BaseException:
            self._context.term()
            raise

    def _check_files(self) -> None:
        """Raise Unavailable if the system has too few files left.

        libzmq aborts the process if its threads get only some of the files that they need.
        """
        pipes: list[tuple[int, int]] = []
        try:
            for _ in range(_FILES // 2):
                pipes.append(os.pipe())  # noqa: PERF401  (the pipes opened before an error must be closed)
        except OSError as error:
            raise self._unavailable(error) from None
        finally:
            for file in itertools.chain(*pipes):
                os.close(file)

    def _open(self) -> None:
        try:
            socket = transport.make_socket(
                self._context,
                zmq.DEALER,
                max_frame_bytes=self._max_frame_bytes,
                heartbeat=transport.CLIENTS_HEARTBEAT,
            )
        except (zmq.ZMQError, OSError) as error:
            raise self._unavailable(error) from None
        monitor: HandshakeMonitor | None = None
        try:
            self._security.protect(socket)
            monitor = HandshakeMonitor(socket)
            transport.connect(socket, self.endpoint)
        except BaseException as error:
            if monitor is not None:
                monitor.close()
            socket.close(linger=0)
            if isinstance(error, (zmq.ZMQError, OSError)):
                raise self._unavailable(error) from None
            raise
        self.socket = self.way = socket
        self._monitor = monitor
        self._inbox = transport.Inbox(socket)
        self._set_sources()
        self.is_open = True

    def _set_sources(self) -> None:
        """Poll the socket that is now, and what wakes."""
        sources: list[Any] = [self.socket] if self._woken_by is None else [self.socket, self._woken_by]
        self._sources = [(source, transport.POLLIN) for source in sources]

    def wake_by(self, descriptor: int) -> None:
        self._woken_by = descriptor
        self._set_sources()

    def wait(self, seconds: float | None) -> tuple[bool, bool]:
        ready = [source for source, _ in zmq.zmq_poll(self._sources, -1 if seconds is None else ceil(seconds * 1000))]
        return self.socket in ready, self._woken_by in ready

    def reset(self) -> None:
        """Disconnect after any failure, so that no lent memory is read any more."""
        lent = [tracker for trackers in self._lent.values() for tracker in trackers]
        self._lent.clear()
        self._shut()
        if lent and not _wait_for(lent, _RECLAIM_BY_FORCE):
            log.error(_STILL_READ)

    def watch(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        self.unwatch(loop)
        descriptor = self.socket.fileno()
        loop.add_reader(descriptor, ready)
        self._watched = descriptor

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop watching, before the socket is closed: the next socket may get the same descriptor."""
        descriptor, self._watched = self._watched, None
        if descriptor is not None and not loop.is_closed():
            loop.remove_reader(descriptor)

    def _shut(self, linger: int = 0) -> None:
        if self.is_open:
            self.is_open = False
            with contextlib.suppress(zmq.ZMQError):
                self._monitor.close()
            with contextlib.suppress(zmq.ZMQError):
                self.socket.close(linger=linger)

    def refusal(self) -> str | None:
        """Say why the broker refuses this client, or return None."""
        why = self._monitor.refusal()
        return None if why is None else f"the broker at {self.endpoint} {why}"

    def send(self, action: Send) -> None:
        message = action.message
        try:
            lent = transport.send(self.socket, [wire.encode(message), *action.payload], track=self._reclaims)
        except zmq.Again:
            return  # its key was refused, so the socket takes nothing; the session learns that from `refusal`
        if lent and isinstance(message, wire.Request):
            self._lent.setdefault(message.id, []).extend(lent)

    def still_lent(self, number: int) -> Sequence[zmq.MessageTracker]:
        """Return trackers of the input memory of a call that ends now, if libzmq still reads it.

        A worker that replies has read all of the request, so the memory is nearly always free. If it is not, because
        the broker does not read or because the request was sent twice, `reclaim` it before the call ends.
        """
        lent = self._lent.pop(number, None) if self._lent else None
        if lent is None or all(tracker.done for tracker in lent) or _wait_for(lent, _RECLAIM_AT_EASE):
            return ()
        return lent

    def reclaim(self, lent: Sequence[zmq.MessageTracker | Stream]) -> None:
        """Reclaim lent memory by closing the socket, which drops anything queued in it, and reconnecting."""
        self.reconnect(self._endpoint)
        if not _wait_for(cast("Sequence[zmq.MessageTracker]", lent), _RECLAIM_BY_FORCE):
            raise Internal(_STILL_READ)

    def receive(self, most: int = _BATCH) -> list[tuple[wire.ToClient, Sequence[object]]]:
        """Return up to `most` messages that have arrived, after a poll said that there is one.

        Bytes that are not a message are dropped, since they belong to no call.
        """
        messages: list[tuple[wire.ToClient, Sequence[object]]] = []
        for frames in self._inbox.take(min(most, _BATCH)):
            message = decoded(frames[0])
            if message is not None:
                messages.append((message, frames[1:]))
        return messages

    def waiting(self) -> bool:
        """Whether a message has arrived."""
        return self._inbox.waiting()

    @property
    def emptied(self) -> bool:
        """Whether the last `receive` found that there were no more."""
        return self._inbox.emptied

    def close(self, linger: int = 100) -> None:
        """Disconnect. `linger` is in milliseconds, for a last Cancel."""
        self._shut(linger)
        self._context.term()

    def forget(self) -> None:
        """Let go of the parent's socket in a forked child.

        The reader stays: parent and child share the loop's descriptor, so removing it here would remove it there.
        """
        self.is_open = False
        self._watched = None
        self._lent.clear()
        _inherited.append((self._context, self.socket, self._monitor))


def _wait_for(trackers: Sequence[zmq.MessageTracker], seconds: float) -> bool:
    """Whether each tracker is done within `seconds`."""
    try:
        for tracker in trackers:
            tracker.wait(seconds)
    except zmq.NotDone:
        return False
    return True


_L = TypeVar("_L", bound=Link, covariant=True)


class Plain(Protocol[_L]):
    """Makes a connection without keys."""

    def __call__(
        self, broker: str | Sequence[str], policy: RetryPolicy | None, max_frame_bytes: int, arena_bytes: int = 0
    ) -> _L: ...


def connect_to(
    plain: Plain[_L],
    broker: str | Sequence[str],
    policy: RetryPolicy | None,
    *,
    max_frame_bytes: int,
    key: str | os.PathLike[str] | None,
    broker_key: str | os.PathLike[str] | None,
    arena_bytes: int,
) -> Connection | _L:
    """The connection of a client: a `Connection` if it has keys, else what `plain` makes."""
    if clients_security(key, broker_key).has_keys:
        return Connection(broker, policy, max_frame_bytes, key, broker_key)
    return plain(broker, policy, max_frame_bytes, arena_bytes)
