"""Ports by libzmq, for a broker with keys: CurveZMQ encrypts, and the key lists say who may connect."""

from __future__ import annotations

import errno
import math
import struct
from collections.abc import Callable, Sequence

import zmq

from broker.config import Config
from broker.events import (
    Action,
    Disconnected,
    Event,
    FromClient,
    FromWorker,
    Malformed,
    Stop,
    ToClient,
    Undelivered,
)
from broker.ports import UNREAD_BY_PEER, routing_ids
from broker.ports.peers import KeyedWays
from broker.ports.reading import decode
from broker.security import Security
from zmq_offload.common.notes import Notes
from zmq_offload.errors import ProtocolError
from zmq_offload.net import transport
from zmq_offload.net.ipc import SocketFile
from zmq_offload.protocol import messages as wire

_BATCH = 16
"""Messages taken from one socket before the other has its turn."""

_KEYS_EVERY = 1.0
"""Seconds between two looks at the key lists."""

_BATCHES = 256
"""Batches of workers' messages that are read before the news that a message was not delivered."""

_UNREAD_HERE = 64
"""Messages of one peer that wait at the broker. Further ones stay in the peer's memory, so that a client that floods
does not fill the broker's."""


class LibzmqPorts:
    """Ports of libzmq. `wake` makes `wait` return a Stop."""

    def __init__(
        self, config: Config, server_key: str, wake: transport.Wake, notes: Notes, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._wake = wake
        self._notes = notes
        self._clock = clock
        routing_ids.randomize()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 65536)
        self._files: list[SocketFile] = []
        try:
            self._security = Security(self._context, server_key, config.authorized_clients, config.authorized_workers)
            try:
                self._front, self.frontend = self._bind(config.frontend, "clients", transport.CLIENTS_HEARTBEAT)
                self._back, self.backend = self._bind(config.backend, "workers", config.policy.heartbeat)
            except BaseException:
                self._security.close()
                raise
        except BaseException:
            self._remove_files()
            self._context.destroy(linger=0)
            raise
        refusals = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        self._monitor = transport.monitor(self._back, zmq.EVENT_DISCONNECTED | refusals)
        self._front_monitor = transport.monitor(self._front, refusals)
        self._from_workers = transport.Inbox(self._back, keyed=True)
        self._from_clients = transport.Inbox(self._front, keyed=True)
        self._news_of_connections = self._monitor.fileno()
        self._poll = transport.Poll(
            (self._from_workers, self._from_clients), (wake.fileno(), self._news_of_connections)
        )
        self.ways = KeyedWays(self.backend)
        self._undelivered: list[Undelivered] = []
        self._news: list[Event] = [self._security.authorized]
        self._drain_monitor(self._monitor, "workers")
        self.due = 0.0

    def _bind(self, endpoint: str, role: str, heartbeat: float) -> tuple[zmq.Socket[bytes], str]:
        socket = transport.make_socket(
            self._context,
            zmq.ROUTER,
            max_frame_bytes=self._config.max_frame_bytes,
            heartbeat=heartbeat,
            high_water_mark=UNREAD_BY_PEER,
        )
        socket.setsockopt(zmq.RCVHWM, _UNREAD_HERE)
        self._security.protect(socket, role)
        bound, file = transport.bind(socket, endpoint)
        if file is not None:
            self._files.append(file)
        return socket, bound

    def wait(self, seconds: float | None) -> Sequence[Event]:
        if self._news or self._undelivered:
            return self._take_news()
        events: list[Event] = []
        for source in self._poll.wait(-1 if seconds is None else math.ceil(seconds * 1000)):
            if source is self._from_workers:
                events += map(self._from_back, self._from_workers.take_after(self._poll, _BATCH))
            elif source is self._from_clients:
                events += map(self._from_front, self._from_clients.take_after(self._poll, _BATCH))
            elif source == self._news_of_connections:
                if self._drain_monitor(self._monitor, "workers"):
                    events.append(Disconnected())
            else:
                self._wake.clear()
                events.append(Stop(self._config.grace))
        now = self._clock()
        if now >= self.due:
            self.due = now + _KEYS_EVERY
            self._drain_monitor(self._front_monitor, "clients")
            if (authorized := self._security.reload()) is not None:
                events.append(authorized)
        return events

    def _take_news(self) -> list[Event]:
        """What the core has to know before it hears of anything else.

        Messages that workers sent before their connections ended come before the news that something was not delivered,
        or finished work would be done again.
        """
        events, self._news = self._news, []
        if self._undelivered:
            for _ in range(_BATCHES):
                if not self._from_workers.waiting():
                    break
                events += map(self._from_back, self._from_workers.take(_BATCH))
            events += self._undelivered
            self._undelivered = []
        return events

    def send(self, actions: Sequence[Action]) -> None:
        for action in actions:
            socket = self._front if type(action) is ToClient else self._back
            try:
                transport.forward(socket, [action.peer, wire.encode(action.message), *action.payload])
            except zmq.ZMQError as error:
                if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                    raise
                self._undelivered.append(Undelivered(action, error.errno == errno.EAGAIN))

    def close(self) -> None:
        for socket, monitor in ((self._back, self._monitor), (self._front, self._front_monitor)):
            socket.disable_monitor()
            monitor.close(linger=0)
        self._remove_files()
        # The last messages, which include replies, still go out.
        self._front.close(linger=1000)
        self._back.close(linger=1000)
        self._security.close()
        self._context.term()

    def _remove_files(self) -> None:
        for file in self._files:
            file.remove()

    def _drain_monitor(self, monitor: zmq.Socket[bytes], role: str) -> bool:
        """Read all events of a monitor, since its descriptor tells only of later ones. Whether a connection ended."""
        ended = False
        while (frames := transport.receive(monitor)) is not None:
            if struct.unpack_from("=H", frames[0])[0] == zmq.EVENT_DISCONNECTED:
                ended = True
            else:
                text = f"a connection to the port of {role} is refused: it has no keys, or a wrong key of this broker"
                self._notes.add(self._clock(), "keys", text)
        return ended

    def _from_front(self, frames: transport.Frames) -> Event:
        peer = frames[0]
        try:
            message = decode(frames, 1, wire.FROM_CLIENT, named=bool(peer[0]))  # libzmq's ids begin with a zero
            return FromClient(peer, message, frames[2:], peer.user)
        except ProtocolError as error:
            return Malformed(peer, True, error.with_traceback(None), transport.address_of(peer.frame))

    def _from_back(self, frames: transport.Frames) -> Event:
        peer = frames[0]
        try:
            message = decode(frames, 1, wire.FROM_WORKER, named=bool(peer[0]))
            address = transport.address_of(peer.frame) if type(message) is wire.Announce else ""
            return FromWorker(peer, message, frames[2:], peer.user, address)
        except ProtocolError as error:
            return Malformed(peer, False, error.with_traceback(None), transport.address_of(peer.frame))
