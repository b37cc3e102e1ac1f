"""The connection to one broker on a plain socket: made, kept alive, and made again."""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from zmq_offload.net import transport
from zmq_offload.net.addresses import Lookup
from zmq_offload.net.dialing import LOOK_AGAIN, Dial
from zmq_offload.net.frames import Buffer, read_heads
from zmq_offload.net.handshake import FAILURES, MISMATCH
from zmq_offload.net.shortcut import Shortcut, is_own_user, shortcut_of
from zmq_offload.net.stream import Stream
from zmq_offload.net.zmtp import Broken, Peer, Refused, Scratch, Sharer
from zmq_offload.protocol import limits

_AHEAD_BYTES = 64 * 1024 * 1024
"""Bytes of messages from one broker that are received while a run takes long. The others stay in the broker's memory,
or in the system's."""


class Change(enum.Enum):
    """What happened to a connection."""

    CONNECTED = "connected"
    """Messages can be sent from now on."""
    LOST = "lost"
    """It ended. What was sent and is not there yet is lost, and so is what is sent before the next CONNECTED."""


Event: TypeAlias = "tuple[int, list[list[Any]] | Change]"
"""A broker, and messages of it that arrived, or a change of its connection. No messages: a part of one came."""


class Line:
    """One broker's connection. Poll `descriptor` for reading unless `full`, and for writing if `wants_to_write`; then
    call `ready`. Call `tick` at `due`. `happened` is told what happens.

    `alive` is a message that tells the broker, while `full`, that this end lives. At most `most_messages` are queued,
    and no further one while `most_bytes` are.
    """

    def __init__(
        self,
        broker: int,
        endpoint: str,
        happened: Callable[[Event], object],
        scratch: Scratch,
        *,
        heartbeat: float,
        max_frame_bytes: int,
        most_messages: int,
        most_bytes: int | None = None,
        alive: bytes = b"",
        sharing: Sharer | None = None,
    ) -> None:
        self.broker = broker
        self._endpoint = endpoint
        self._event = happened
        self._scratch = scratch
        self._sharing = sharing
        self._heartbeat = heartbeat
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self._alive = alive
        self._max_frame_bytes = max(max_frame_bytes, limits.UNASKED_BYTES)
        self._delay = transport.RECONNECT
        self._failures = 0  # handshakes in a row that failed
        self.refusal: str | None = None
        self.fault: Exception | None = None
        """Why the last attempt to connect failed, or how the last connection ended."""
        self._dial: Dial | None = None
        self._lookup: Lookup | None = None
        self._shortcut: Shortcut | None = None
        """The one that is taken, from the attempt to its end."""
        self._stays = False  # whether the next connection takes none: the last one led to nowhere
        self.stream: Stream | None = None
        self.is_ready = False
        """Whether messages can be sent."""
        self.due = -math.inf
        self._ahead = self._ahead_bytes = 0  # messages that were received ahead, and their bytes

    # --- what is to be polled -------------------------------------------------------------------------------

    @property
    def descriptor(self) -> int | None:
        if self.stream is not None:
            return self.stream.fileno()
        return None if self._dial is None else self._dial.fileno()

    @property
    def blocked(self) -> bool:
        """Whether something is queued of which the system takes no more for now."""
        return self.stream is not None and self.stream.blocked

    @property
    def wants_to_write(self) -> bool:
        return self.stream is None or self.stream.blocked

    @property
    def full(self) -> bool:
        """Whether so much was received ahead that the rest has to wait."""
        return self._ahead >= self._most_messages or self._ahead_bytes >= _AHEAD_BYTES

    # --- messages -------------------------------------------------------------------------------------------

    @property
    def shares(self) -> bool:
        """Whether tensors pass through shared memory."""
        return self.stream is not None and self.stream.peer.shares

    def put(self, now: float, frames: Sequence[Buffer]) -> None:
        """Queue a message for `flush`. Without a connection it is lost. So is the connection if its other end has not
        read for long."""
        if self.stream is not None and self.is_ready:
            try:
                if not self.stream.put(frames):
                    self._lose(now)
            except OSError as error:
                self._lose(now, error)

    def receive(self, now: float) -> None:
        """Receive what is there."""
        assert self.stream is not None
        try:
            messages = self.stream.receive()
        except (Broken, OSError) as error:
            self._lose(now, error)
            return
        if not self.is_ready and not self._shake(now):
            return
        if messages:
            for frames in messages:
                if type(frames[0]) is not bytes or (len(frames) > 1 and type(frames[1]) is not bytes):
                    read_heads(frames)
        if messages or self.is_ready:
            self._event((self.broker, messages))

    def received_ahead(self, messages: Sequence[Sequence[Buffer]]) -> None:
        """Count messages that wait until a run ends."""
        self._ahead += len(messages)
        self._ahead_bytes += sum(len(frame) for frames in messages for frame in frames)

    def caught_up(self) -> None:
        """No messages wait any more."""
        self._ahead = self._ahead_bytes = 0

    def flush(self, now: float) -> None:
        """Write what the system takes."""
        if self.stream is not None:
            try:
                self.stream.flush()
            except OSError as error:
                self._lose(now, error)

    # --- the connection -------------------------------------------------------------------------------------

    def ready(self, now: float) -> None:
        """The descriptor is ready."""
        if self.stream is None:
            self._connect(now)
            return
        if self.stream.blocked:
            self.flush(now)
        if self.stream is not None and not self.full:
            self.receive(now)

    def tick(self, now: float) -> None:
        """Something is due."""
        if self.is_ready:
            self._beat(now)
        elif self.stream is not None:
            self._lose(now, TimeoutError())  # the handshake takes too long
        elif self._dial is not None and self._dial.fileno() is not None:
            self._fail(now, TimeoutError())  # to connect takes too long
        else:
            if self._dial is None:
                self._dial = Dial(self._endpoint, self._lookup)
            self._connect(now)

    def reconnect(self) -> None:
        """Drop the connection, and connect at once."""
        self.close()
        self._delay, self._failures, self.refusal = transport.RECONNECT, 0, None
        self.due = -math.inf

    def close(self) -> None:
        """Drop the connection and what is queued in it."""
        self.is_ready = False
        if self._dial is not None:
            self._dial.close()
        if self.stream is not None:
            self.stream.close()
        self._dial = self.stream = self._shortcut = None
        self.due = math.inf

    def _connect(self, now: float) -> None:
        """Go on to connect."""
        assert self._dial is not None
        self._lookup = self._dial.lookup
        try:
            connected = self._dial.step()
        except OSError as error:
            self._fail(now, error)
            return
        if connected is None:
            self.due = now + (LOOK_AGAIN if self._dial.fileno() is None else transport.HANDSHAKE)
            return
        self._dial = None
        if self._shortcut is not None and not is_own_user(connected):
            connected.close()
            self._fail(now, None)
            return
        peer = Peer(self._max_frame_bytes, limits.FRAMES, self._heartbeat, scratch=self._scratch, sharer=self._sharing)
        self.stream = Stream(connected, peer, self._most_messages, self._most_bytes)
        self.due = now + transport.HANDSHAKE
        self.flush(now)

    def _shake(self, now: float) -> bool:
        """The handshake may be over. Whether this connection goes on."""
        stream = self.stream
        assert stream is not None
        if not stream.peer.is_ready:
            return True
        if self._shortcut is not None:
            if not self._shortcut.leads_to(stream.peer):
                self._lose(now)
                return False
        elif not self._stays and (shortcut := shortcut_of(stream.socket.getsockname(), stream.peer)) is not None:
            self.close()
            self._shortcut = shortcut
            self._dial = Dial(shortcut.endpoint, self._lookup)
            self._connect(now)
            return False
        self.is_ready, self._stays = True, False
        self._delay, self._failures, self.refusal = transport.RECONNECT, 0, None
        self.due = now + self._heartbeat
        self._event((self.broker, Change.CONNECTED))
        return True

    def _beat(self, now: float) -> None:
        """A heartbeat is due."""
        assert self.stream is not None
        self.due = now + self._heartbeat
        try:
            if self.full:  # what the broker says is not read, so its silence says nothing; but it hears this end
                alive = self.stream.blocked or self.stream.put([self._alive])
                self.stream.flush()
            else:
                alive = self.stream.tick()
        except OSError:
            alive = False
        if not alive:
            self._lose(now)

    def _lose(self, now: float, why: Exception | None = None) -> None:
        """There is a connection that cannot go on."""
        if self.is_ready:
            self._event((self.broker, Change.LOST))
        elif self._shortcut is None:
            self._failures += 1
            if isinstance(why, Refused) or self._failures >= FAILURES:
                self.refusal = MISMATCH
        self._fail(now, why)

    def _fail(self, now: float, why: Exception | None) -> None:
        """Connect again: after a while, but at once if the shortcut leads to nowhere."""
        self._stays = self._shortcut is not None and not self.is_ready
        self.close()
        if self._stays:
            self.due = now
            return
        self.fault = why
        # As libzmq does: not all peers of a broker that comes back at the same moment.
        self.due = now + self._delay + random.random() * transport.RECONNECT
        self._delay = min(2 * self._delay, transport.RECONNECT_MOST)
