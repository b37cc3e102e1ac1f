"""Connections without keys: plain sockets, which the loop reads and writes itself. While a run takes long, a thread of
their own does so (see `workers.turns`)."""

from __future__ import annotations

import math
import select
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from workers.turns import LONG, LOOK_EVERY, REST, Runs, Turn
from zmq_offload.net import transport
from zmq_offload.net.line import Change, Event, Line
from zmq_offload.net.pyzmq_internals import Sendable
from zmq_offload.net.sharedmemory.sharing import EVERY, Sharing
from zmq_offload.net.zmtp import Scratch
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire

_SETTLE = 0.2
"""Seconds that a run waits, at most, for brokers to read what was sent before."""

_LINGER = 2.0
"""Seconds that the end waits, at most, for brokers to read what was sent."""

_UNREAD = 0.5
"""Seconds that the end waits, at most, for others to come to outputs in shared memory: it ends with this process for
those that have not mapped it."""

_LOOK = 0.005
"""Seconds between two looks whether they came."""

_HELD = 0.0002
"""Seconds that an answer may wait for the run of the next one, so that both are sent together."""

_HEARTBEAT = wire.encode(wire.Heartbeat())

_POLLIN, _POLLOUT = select.POLLIN, select.POLLOUT


class StreamLinks:
    """Implements `workers.links.Links`. It connects in the first `wait`.

    One thread at a time uses the connections: the one that holds `_turn`.
    """

    def __init__(
        self,
        brokers: Sequence[str],
        *,
        heartbeat: float,
        most_messages: int,
        max_frame_bytes: int,
        sharing: Sharing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._sharing = sharing
        self._share_at = -math.inf  # when shared memory is looked at again
        self._events: list[Event] = []
        scratch = Scratch()
        self._lines = [
            Line(
                broker,
                endpoint,
                self._happened,
                scratch,
                heartbeat=heartbeat,
                most_messages=most_messages,
                most_bytes=4 * max(max_frame_bytes, limits.UNASKED_BYTES),
                max_frame_bytes=max_frame_bytes,
                alive=_HEARTBEAT,
                sharing=sharing,
            )
            for broker, endpoint in enumerate(brokers)
        ]
        self._due = -math.inf  # when the first of them has something to do
        self._unsent: list[Line] = []
        self._blocked = False  # whether something waits until the system takes more
        self._polled: dict[int, tuple[Line, int]] = {}  # by descriptor, with what it is polled for
        self._watched: dict[int, Callable[[], None]] = {}
        self._poll, self._standins_poll = select.poll(), select.poll()
        self._runs = Runs()
        self._long = False
        self._rest = min(REST, heartbeat / 2)
        self._turn = threading.Lock()
        self._turn.acquire()
        self._lent = False  # whether the other thread has the turn
        self._wake = transport.Wake()
        self._standins_poll.register(self._wake.fileno(), _POLLIN)
        self._closed = False
        self._fault: Exception | None = None
        self._standin = threading.Thread(target=self._stand_in, name="connections", daemon=True)
        self._standin.start()

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        self._watched[descriptor] = ready
        self._poll.register(descriptor, _POLLIN)

    def unwatch(self, descriptor: int) -> None:
        del self._watched[descriptor]
        self._poll.unregister(descriptor)

    def wait(self, until: float, *, many: bool) -> list[Event]:
        if not self._events:
            self._step(self._poll, until)
        events, self._events = self._events, []
        return events

    def look(self) -> list[Event]:
        self._step(self._poll, -math.inf)
        events, self._events = self._events, []
        return events

    def send(self, broker: int, message: wire.FromWorker, payload: Sequence[Sendable] = ()) -> None:
        self.answer(broker, [wire.encode(message), *payload])

    def answer(self, broker: int, frames: list[Any]) -> None:
        line = self._lines[broker]
        if line.is_ready:
            if self._sharing is not None and line.shares:
                frames = self._sharing.given(frames)
            line.put(self._clock(), frames)
        if line not in self._unsent:
            self._unsent.append(line)

    def flush(self) -> None:
        if self._unsent:
            lines, self._unsent = self._unsent, []
            for line in lines:
                line.flush(self._clock())
                self._follow(line)

    def settle(self) -> None:
        self._write_out(self._lines, _SETTLE)

    def reconnect(self, broker: int) -> None:
        self._lines[broker].reconnect()
        self._register(self._lines[broker])

    def refusal(self, broker: int) -> str | None:
        return self._lines[broker].refusal

    def shares(self, broker: int) -> bool:
        return self._lines[broker].shares

    def close(self, lingering: Sequence[bool]) -> None:
        self._write_out([line for line, lingers in zip(self._lines, lingering, strict=True) if lingers], _LINGER)
        if self._sharing is not None and any(lingering):
            end = self._clock() + _UNREAD
            while self._sharing.arena.unread and self._clock() < end:
                time.sleep(_LOOK)
        self._closed = True
        self._turn.release()
        self._wake.set()
        self._standin.join()
        for line in self._lines:
            line.close()
        self._wake.close()

    # --- runs -----------------------------------------------------------------------------------------------

    def lend(self, kind: Hashable) -> None:
        runs = self._runs
        expected = runs.expected(kind)
        if expected > _HELD and self._unsent:
            self.flush()
        self._long = expected >= LONG or self._blocked
        runs.count += 1
        self._turn.release()
        if self._long:
            self._wake.set()

    def take_back(self, kind: Hashable, seconds: float) -> None:
        runs = self._runs
        runs.count += 1
        if not self._turn.acquire(blocking=False):
            self._wake.set()
            self._turn.acquire()
        runs.lasted(kind, seconds)
        if self._lent:
            self._lent = False
            if self._fault is not None:
                raise self._fault
            for line in self._lines:
                line.caught_up()
                self._register(line)

    def forget(self) -> None:
        self._runs.forget()

    def _stand_in(self) -> None:
        """What the other thread does."""
        poll = select.poll()
        poll.register(self._wake.fileno(), _POLLIN)
        runs, turn = self._runs, Turn.REST
        while not self._closed:
            if poll.poll((self._rest if turn is Turn.REST else LOOK_EVERY) * 1000):
                self._wake.clear()
            turn = runs.look(long=self._long)
            if turn is Turn.TAKE and self._turn.acquire(blocking=False):
                try:
                    self._go_on(runs.count)
                except Exception as fault:
                    self._fault = fault
                finally:
                    self._turn.release()

    def _go_on(self, run: int) -> None:
        """Keep the connections going until the run ends. Its number is odd; an even one says that it ended already."""
        self._lent = True
        self.flush()
        while run % 2 and self._runs.count == run:
            self._step(self._standins_poll, math.inf)

    # --- one turn -------------------------------------------------------------------------------------------

    def _step(self, poll: select.poll, until: float) -> None:
        """Wait until a descriptor is ready or something is due, and do what there is to do."""
        due = min(until, self._due)
        wait = None if due == math.inf else max(0, math.ceil((due - self._clock()) * 1000)) if due > 0 else 0
        ready = poll.poll(wait)
        now = self._clock()
        for descriptor, _ in ready:
            if descriptor in self._polled:
                line, _ = self._polled[descriptor]
                line.ready(now)
                self._follow(line)
            elif descriptor in self._watched:
                self._watched[descriptor]()
            else:
                self._wake.clear()
        if now >= self._due:
            self._tick()

    def _tick(self) -> None:
        """Do what is due."""
        now = self._clock()
        if self._sharing is not None and now >= self._share_at:
            self._share_at = now + EVERY
            self._sharing.tick()
        for line in self._lines:
            if line.due <= now:
                line.tick(now)
            self._register(line)

    def _follow(self, line: Line) -> None:
        """Something was done with a connection. Nearly always it is polled for reading alone, and goes on so."""
        stream = line.stream
        if stream is None or stream.blocked or line.full or self._polled.get(stream.fileno()) != (line, _POLLIN):
            self._register(line)

    def _register(self, line: Line) -> None:
        """Poll a connection as it is now, and find out when the next one has something to do."""
        self._due = min(each.due for each in self._lines)
        self._blocked = any(each.blocked for each in self._lines)
        descriptor = line.descriptor
        for known, (other, _) in list(self._polled.items()):
            if other is line and known != descriptor:
                self._forget(known)
        if descriptor is None:
            return
        reads = line.stream is not None and not line.full
        wanted = (_POLLIN if reads else 0) | (_POLLOUT if line.wants_to_write else 0)
        if not wanted:  # it would be polled for its end, without a pause
            self._forget(descriptor)
        elif self._polled.get(descriptor) != (line, wanted):
            self._polled[descriptor] = line, wanted
            self._poll.register(descriptor, wanted)
            self._standins_poll.register(descriptor, wanted)

    def _forget(self, descriptor: int) -> None:
        if self._polled.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)
            self._standins_poll.unregister(descriptor)

    def _happened(self, event: Event) -> None:
        if not event[1] and self._events and self._events[-1] == event:
            return  # once is enough, however long the message is that comes
        self._events.append(event)
        if isinstance(event[1], Change):
            self._due = -math.inf  # another time is due for this connection
        elif self._lent:
            self._lines[event[0]].received_ahead(event[1])

    def _write_out(self, lines: Sequence[Line], seconds: float) -> None:
        """Write what is queued, within a time."""
        end = self._clock() + seconds
        while True:
            for line in lines:
                line.flush(self._clock())
                self._register(line)
            waiting = next((line.stream for line in lines if line.blocked), None)
            left = end - self._clock()
            if waiting is None or left <= 0:
                return
            blocked = select.poll()
            blocked.register(waiting, _POLLOUT)
            blocked.poll(left * 1000)
