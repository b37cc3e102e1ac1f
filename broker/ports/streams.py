"""Ports on plain sockets, for a broker without keys: one epoll, one `recv` for each peer that sent, one `send` for each
peer that is sent to, in each turn."""

from __future__ import annotations

import errno
import math
import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from broker.config import Config
from broker.events import Action, Disconnected, Event, FromClient, FromWorker, Malformed, Stop, Undelivered
from broker.ports import UNREAD_BY_PEER
from broker.ports.connection import MESSAGES, Connection, Side
from broker.ports.listening import Listener
from broker.ports.peers import StreamWays
from broker.ports.reading import decode
from zmq_offload.common.notes import Notes
from zmq_offload.errors import ProtocolError, Status
from zmq_offload.net import transport
from zmq_offload.net.frames import Buffer
from zmq_offload.net.sharedmemory.references import FIRST
from zmq_offload.net.sharedmemory.sharing import EVERY, Sharing, Unreadable
from zmq_offload.net.zmtp import Broken, Scratch
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT

_TURN = 64
"""Connections that are read in one turn. If more can be, workers go first, so that answers do not wait for requests."""

_SHARED = 64
"""Messages of one turn, apart from the first of each connection: many connections that send much at once have few each,
so that a request between them waits for few."""

_SHARES = tuple(min(MESSAGES, 1 + _SHARED // (count + 1)) for count in range(2 * _TURN + 1))
"""Messages of each connection in a turn, by how many connections are read."""

_BEHIND = 2
"""Connections of each port that are read in one turn, of those that sent more than a turn's messages at once."""

_ACCEPTED = 64
"""Connections that one port accepts in one turn."""

_TICKED = 256
"""Connections whose heartbeats are sent in one turn."""

_TOGETHER = 0.05
"""Seconds within which heartbeats are sent together, so that few of them wake the broker."""

_NO_FILES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_ACCEPT_AGAIN = 0.5
"""Seconds until a port accepts again when there were no files left."""

_LINGER = 1.0
"""Seconds in which peers read the last messages of a broker that ends."""

_CLIENTS_UNREAD_BYTES = 256 * 1024 * 1024
"""Bytes queued for one client that does not read, and one message more. Requests that a worker has not read yet are
kept in memory for another attempt anyway, so those are only counted."""


class StreamPorts:
    """Ports on plain sockets. `wake` makes `wait` return a Stop."""

    def __init__(
        self,
        config: Config,
        wake: transport.Wake,
        notes: Notes,
        clock: Callable[[], float],
        sharing: Sharing | None = None,
    ) -> None:
        self._wake, self._notes, self._clock = wake, notes, clock
        self._sharing = sharing
        self._share_at = clock()  # when the memory of peers is looked at again
        self._grace = config.grace
        front = Listener(config.frontend)
        try:
            back = Listener(config.backend)
        except BaseException:
            front.close()
            raise
        self.frontend, self.backend = front.endpoint, back.endpoint
        most = max(config.max_frame_bytes, limits.UNASKED_BYTES)
        scratch = Scratch()
        self._sides: tuple[Side, ...] = (
            Side(back, "a worker", False, config.policy.heartbeat, most, UNREAD_BY_PEER, None, scratch, sharing),
            Side(
                front,
                "a client",
                True,
                transport.CLIENTS_HEARTBEAT,
                most,
                UNREAD_BY_PEER,
                _CLIENTS_UNREAD_BYTES,
                scratch,
                sharing,
            ),
        )
        self._behind = self._sides[0].behind, self._sides[1].behind
        self._sides += tuple(near for side in self._sides if (near := side.nearby()) is not None)
        self._poll = select.epoll()
        self._workers = select.epoll()  # a second look at those, if there is too much for a turn
        self._poll.register(wake.fileno(), _IN)
        self._listening = {side.listener.socket.fileno(): side for side in self._sides}
        for number in self._listening:
            self._poll.register(number, _IN)
        self._connections: dict[int, Connection] = {}  # by descriptor
        self._by_id: dict[bytes, Connection] = {}
        self.ways = StreamWays(self._by_id, sharing)
        self._undelivered: list[Undelivered | FromWorker] = []  # for the next turn
        self._share = MESSAGES  # messages of each connection in this turn
        self.due = math.inf

    # --- a turn ---------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """A descriptor that is readable when `wait` has something to do, for the loop of another program."""
        return self._poll.fileno()

    @property
    def has_more(self) -> bool:
        """Whether `wait` has something to do that the descriptor does not tell of."""
        return bool(self._undelivered or any(self._behind))

    def wait(self, seconds: float | None) -> Sequence[Event]:
        events: list[Event] = []
        workers, clients = self._behind
        undelivered = self._undelivered
        if undelivered or workers or clients:
            seconds = 0
            self._undelivered = []
        ready = self._poll.poll(seconds, _TURN)
        if len(ready) == _TURN:
            ready = list(dict(self._workers.poll(0, _TURN) + ready).items())
        connections = self._connections
        self._share = _SHARES[len(ready)]
        for number, happened in ready:
            connection = connections.get(number)
            if connection is None:
                self._look_at(number, events)
                continue
            if happened & _OUT:
                self._flush(connection)
            if happened != _OUT and not connection.peer.has_more:
                self._receive(connection, events)
        if workers or clients:
            for behind in self._behind:
                for _ in range(min(_BEHIND, len(behind))):
                    self._receive(behind.popleft(), events)
        if self._clock() >= self.due:
            self._sweep(events)
        if undelivered:
            events += undelivered  # what came from those peers before is handled first
        return events

    def _look_at(self, number: int, events: list[Event]) -> None:
        side = self._listening.get(number)
        if side is not None:
            self._accept(side)
        else:
            self._wake.clear()
            events.append(Stop(self._grace))

    def _receive(self, connection: Connection, events: list[Event]) -> None:
        connection.peer.turn = self._share
        try:
            messages = connection.receive()
        except (Broken, OSError) as error:
            self._end(connection, error, events)
            return
        if connection.is_new and connection.peer.is_ready:
            connection.is_new = False
            connection.is_named = bool(connection.peer.identity)
            self._beat(connection, self._clock())
        if connection.blocked != connection.is_polled:
            self._watch(connection)
        side = connection.side
        if connection.peer.has_more:
            side.behind.append(connection)
        if messages:
            (_from_client if side.of_clients else _from_worker)(connection, messages, events)

    def send(self, actions: Sequence[Action]) -> None:
        by_id, encode = self._by_id, wire.encode
        written: dict[Connection, None] = {}
        for action in actions:
            connection = by_id.get(action.peer)
            if connection is None:
                self._undelivered.append(Undelivered(action, False))
                continue
            frames: list[Any] = [encode(action.message), *action.payload]
            try:
                for frame in frames:
                    if type(frame) is not bytes:  # else nothing in it is shared
                        frames = self._shared(frames, action.message, connection)
                        break
                if connection.put(frames):
                    written[connection] = None
                else:
                    self._undelivered.append(Undelivered(action, True))
            except OSError:
                self._undelivered.append(Undelivered(action, False))
            except Unreadable as error:
                self._undelivered.append(_failed(connection, action.message, f"the inputs are lost: {error}"))
        for connection in written:
            if not connection.is_polled:
                self._flush(connection)

    def _shared(self, frames: list[Any], message: wire.Message, connection: Connection) -> list[Buffer]:
        """The frames of a message as they leave. Payloads are those that came in here: no frame is one of libzmq.

        Raises Unreadable if a worker needs the bytes of a reference, and they are gone.
        """
        sharing = self._sharing
        if sharing is None or len(frames) <= FIRST:
            return frames
        if connection.peer.shares:
            return sharing.lent(frames)
        try:
            return sharing.read(frames)
        except Unreadable as error:
            if type(message) is not wire.Result:
                raise
            text = f"the outputs are lost: {error}"  # the worker that had them ended
            return [wire.encode(wire.Error(message.session, message.id, Status.UNAVAILABLE.value, text))]

    def _flush(self, connection: Connection) -> None:
        try:
            connection.flush()
        except OSError:
            # The connection has ended. What came before is read first, and then the end is.
            connection.blocked = False
        if connection.blocked != connection.is_polled:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """Poll a connection for writing, or not any more."""
        connection.is_polled = connection.blocked
        self._poll.modify(connection.fileno(), _IN | _OUT if connection.is_polled else _IN)

    # --- connections ----------------------------------------------------------------------------------------

    def _accept(self, side: Side) -> None:
        now = self._clock()
        for _ in range(_ACCEPTED):
            try:
                accepted, address = side.listener.accept()
            except BlockingIOError:
                side.is_full = False
                return
            except OSError as error:
                if error.errno in _NO_FILES:
                    self._pause(side, error, now)
                    return
                continue  # it ended before it was accepted
            try:
                connection = Connection(accepted, address, self._new_id(), side)
            except OSError:
                accepted.close()
                continue
            number = accepted.fileno()
            self._connections[number] = connection
            self._by_id[connection.id] = connection
            self._poll.register(number, _IN)
            if not side.of_clients:
                self._workers.register(number, _IN)
            self._flush(connection)
            side.handshakes.append((now + transport.HANDSHAKE, connection))
            self.due = min(self.due, now + transport.HANDSHAKE)

    def _new_id(self) -> bytes:
        """An id that nobody can guess."""
        while (found := b"\0" + os.urandom(8)) in self._by_id:
            pass
        return found

    def _pause(self, side: Side, error: OSError, now: float) -> None:
        """No files are left. The port that goes on would be ready at once, again and again."""
        self._poll.unregister(side.listener.socket.fileno())
        side.accepts_at = now + _ACCEPT_AGAIN
        self.due = min(self.due, side.accepts_at)
        if not side.is_full:
            side.is_full = True
            text = f"{side.who} cannot connect: {error.strerror}; it waits until another connection ends"
            self._notes.add(now, "files", text)

    def _beat(self, connection: Connection, now: float) -> None:
        """Look at a connection again after an interval of heartbeats."""
        at = now + connection.side.heartbeat
        connection.side.beats.append((at, connection))
        self.due = min(self.due, at)

    def _sweep(self, events: list[Event]) -> None:
        """Do what is due: heartbeats, handshakes that took too long, ports that paused."""
        now = self._clock()
        due = math.inf
        if self._sharing is not None:
            if self._share_at <= now:
                self._share_at = now + EVERY
                self._sharing.tick()
            if self._sharing.reads:
                due = self._share_at
        for side in self._sides:
            if side.accepts_at <= now:
                side.accepts_at = math.inf
                self._poll.register(side.listener.socket.fileno(), _IN)
            for connection in _due(side.handshakes, now):
                if connection.is_new and connection.fileno() >= 0:
                    self._end(connection, Broken("its handshake took too long"), events)
            for connection in _due(side.beats, now + _TOGETHER):
                if connection.fileno() < 0:
                    continue
                if connection.beat():
                    self._beat(connection, now)
                    if connection.blocked != connection.is_polled:
                        self._watch(connection)
                else:
                    self._end(connection, Broken("it does not answer heartbeats"), events)
            heads = [entries[0][0] for entries in (side.handshakes, side.beats) if entries]
            due = min(due, side.accepts_at, *heads)
        self.due = due

    def _end(self, connection: Connection, error: Exception, events: list[Event]) -> None:
        number = connection.fileno()
        del self._connections[number], self._by_id[connection.id]
        if connection.peer.has_more:
            connection.side.behind.remove(connection)
        self._poll.unregister(number)
        side = connection.side
        if not side.of_clients:
            self._workers.unregister(number)
            if not connection.is_new:
                events.append(Disconnected(connection.id))
        connection.close()
        if isinstance(error, Broken):
            text = f"the connection of {side.who} at {connection.address} is closed: {error}"
            self._notes.add(self._clock(), "connections", text)

    def close(self) -> None:
        for side in self._sides:
            side.listener.close()
        left = {number: one for number, one in self._connections.items() if one.is_polled}
        writing = select.poll()
        for number in left:
            writing.register(number, select.POLLOUT)
        end = self._clock() + _LINGER
        while left and (seconds := end - self._clock()) > 0:
            for number, _ in writing.poll(seconds * 1000):
                self._flush(left[number])
                if not left[number].is_polled:
                    writing.unregister(number)
                    del left[number]
        for connection in self._connections.values():
            connection.close()
        self._poll.close()
        self._workers.close()


def _from_client(connection: Connection, messages: list[list[Buffer]], events: list[Event]) -> None:
    peer, named = connection.id, connection.is_named
    for frames in messages:
        try:
            message = decode(frames, 0, wire.FROM_CLIENT, named=named)
            del frames[0]
            events.append(FromClient(peer, message, frames))
        except ProtocolError as error:  # noqa: PERF203  (the next message is read after an error)
            events.append(Malformed(peer, True, error.with_traceback(None), connection.address))


def _from_worker(connection: Connection, messages: list[list[Buffer]], events: list[Event]) -> None:
    peer, named, address = connection.id, connection.is_named, connection.address
    for frames in messages:
        try:
            message = decode(frames, 0, wire.FROM_WORKER, named=named)
            del frames[0]
            events.append(FromWorker(peer, message, frames, "", address))
        except ProtocolError as error:  # noqa: PERF203
            events.append(Malformed(peer, False, error.with_traceback(None), address))


def _failed(connection: Connection, message: wire.ToClient | wire.ToWorker, why: str) -> FromWorker:
    """What a worker would answer that has a message without its bytes. The call has ended, or its client."""
    assert type(message) is wire.Dispatch
    failed = wire.Failed(message.session, message.id, message.attempt, Status.UNAVAILABLE.value, why)
    return FromWorker(connection.id, failed, (), "", connection.address)


def _due(entries: deque[tuple[float, Connection]], now: float) -> list[Connection]:
    """Remove what is due, but not too many at once."""
    found: list[Connection] = []
    while entries and entries[0][0] <= now and len(found) < _TICKED:
        found.append(entries.popleft()[1])
    return found
