"""A connection of a peer, and what the connections of one port have in common."""

from __future__ import annotations

import copy
import math
import socket
from collections import deque

from broker.ports.listening import Listener
from broker.ways import Way
from zmq_offload.errors import FailedPrecondition
from zmq_offload.net.sharedmemory.sharing import Sharing
from zmq_offload.net.shortcut import Inviting, new_name
from zmq_offload.net.stream import Stream
from zmq_offload.net.zmtp import Peer, Scratch
from zmq_offload.protocol import limits

MESSAGES = 16
"""Messages of one connection that are handled in one turn, at most."""

_FRAMES = 4 * limits.FRAMES
"""Frames of a message from which its connection is closed. One with more than `limits.FRAMES` is answered with an
error."""


class Side:
    """One of the two ports: its listening socket and the options of its connections."""

    def __init__(
        self,
        listener: Listener,
        who: str,
        of_clients: bool,
        heartbeat: float,
        max_frame_bytes: int,
        most: int,
        most_bytes: int | None,
        scratch: Scratch,
        sharing: Sharing | None,
    ) -> None:
        self.listener = listener
        self.who = who
        self.of_clients = of_clients
        self.heartbeat = heartbeat
        self._max_frame_bytes = max_frame_bytes
        self.most, self.most_bytes = most, most_bytes
        self._scratch = scratch
        self._sharing = sharing
        self.handshakes: deque[tuple[float, Connection]] = deque()
        """The connections by when their handshakes must be over."""
        self.beats: deque[tuple[float, Connection]] = deque()
        """The connections by the ends of their intervals of heartbeats."""
        self.behind: deque[Connection] = deque()
        """The connections of which messages have come that are not read yet."""
        self.accepts_at = math.inf
        """When the port accepts again, if it has paused."""
        self.is_full = False
        """Whether it has paused, and has not accepted all that waited since."""

        self._near = ""  # the name of the shortcut, if there is one

    def peer(self, accepted: socket.socket) -> Peer:
        """The other end of a connection that was accepted."""
        sharer = (
            self._sharing if self._sharing is None or not self._near else Inviting(self._sharing, accepted, self._near)
        )
        return Peer(self._max_frame_bytes, _FRAMES, self.heartbeat, b"ROUTER", scratch=self._scratch, sharer=sharer)

    def nearby(self) -> Side | None:
        """The same port at a Unix socket, which peers of this user are told of that share memory. None if the port is
        at one already, or the system has none without a file."""
        if self.listener.socket.family == socket.AF_UNIX or self._sharing is None:
            return None
        near, name = copy.copy(self), new_name()
        try:
            near.listener = Listener(f"ipc://{name}", own_user=True)
        except FailedPrecondition:
            return None
        near.handshakes, near.beats = deque(), deque()
        self._near = name
        return near


class Connection(Stream):
    """A connection that was accepted. Each message of its peer has its `id`."""

    __slots__ = ("address", "id", "is_named", "is_new", "is_polled", "side", "way")

    def __init__(self, accepted: socket.socket, address: str, id: bytes, side: Side) -> None:
        super().__init__(accepted, side.peer(accepted), side.most, side.most_bytes)
        self.id = id
        self.address = address
        self.side = side
        self.is_new = True
        """Whether the handshake is not over."""
        self.is_named = False
        """Whether its peer gave itself a name."""
        self.is_polled = False
        """Whether it is polled for writing."""
        self.way: Way | None = None
        """How its peer is connected, once that was asked for and does not change any more."""

    def beat(self) -> bool:
        """An interval of heartbeats is over. False if the other end is gone."""
        try:
            return self.tick()
        except OSError:  # what came before the end is read first, and then the end is
            return True
