"""The relay: a loop that moves bytes between sockets at the times that `path` decides."""

from __future__ import annotations

import contextlib
import random
import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.net.transport import check_endpoint
from zmq_offload.testing.link.conditions import Conditions, Kind, Outage, timetable
from zmq_offload.testing.link.connection import Connection, Pipe
from zmq_offload.testing.link.path import Path
from zmq_offload.testing.link.trace import Moment, Trace

_LATEST = 0.0005
"""Seconds. A longer delay means that the process was not running, and is not learned from."""


class Relay:
    """A link from `listen` to `to`, both tcp:// endpoints. Only the thread that calls `run` may use it.

    With a `trace`, its moments change bandwidth and delay, and `conditions` has the jitter.

    Raises InvalidArgument for endpoints of another kind, FailedPrecondition if it cannot listen.
    """

    def __init__(
        self,
        to: str,
        listen: str,
        conditions: Conditions,
        outages: Sequence[Outage] = (),
        trace: Trace | None = None,
    ) -> None:
        self._target = _resolved(_address(to))
        self._changes = deque(timetable(outages))
        self._moments: Iterator[Moment] = iter(()) if trace is None else trace.changes()
        self._next = next(self._moments, None)
        self._jitter = conditions.jitter
        there, back = Path[Pipe](conditions, random.random), Path[Pipe](conditions, random.random)
        self._paths = there, back
        self._connections: set[Connection] = set()
        self._state: Kind | None = None
        self._early = 0.0  # seconds that a wake-up takes: bytes came in before it, and would go out after it
        # Keeps the port during an outage, when nobody listens on it.
        self._reserved = _bound(_resolved(_address(listen)))
        host, port = self._reserved.getsockname()[:2]
        self._place = host, port
        try:
            self._listener = _listening(self._place)
        except BaseException:
            self._reserved.close()
            raise
        self._selector = selectors.EpollSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.endpoint = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def go(self, state: Kind | None) -> None:
        """Begin an outage of a kind, or end it with None."""
        now = time.monotonic()
        if self._state == "refuse" and state != "refuse":
            self._listener = _listening(self._place)
            self._selector.register(self._listener, selectors.EVENT_READ)
        for path in self._paths:
            if state == "stall":
                path.stall(now)
            else:
                path.resume(now)
        if state == "refuse" and self._state != "refuse":
            self._selector.unregister(self._listener)
            self._listener.close()
            for connection in list(self._connections):
                self._drop(connection)
            for path in self._paths:
                path.clear()
        self._state = state

    def change(self, conditions: Conditions) -> None:
        """Use other conditions from now on."""
        for path in self._paths:
            path.change(conditions)

    def _follow(self, moment: Moment) -> None:
        """Be like the trace at a moment. The jitter is at most the delay: bytes do not arrive before they are sent."""
        rtt = 2 * moment.delay
        for path, bandwidth in zip(self._paths, (moment.up, moment.down), strict=True):
            path.change(Conditions(bandwidth or None, rtt, min(self._jitter, rtt)))
        if moment.stalled != (self._state == "stall"):
            self.go("stall" if moment.stalled else None)

    def run(self, commands: int | None = None, obey: Callable[[], bool] = lambda: False) -> None:
        """Run until `obey` returns False. It is called whenever the descriptor `commands` is readable."""
        if commands is not None:
            self._selector.register(commands, selectors.EVENT_READ, obey)
        began = time.monotonic()
        planned: float | None = None
        while True:
            now = time.monotonic()
            while self._changes and began + self._changes[0][0] <= now:
                self.go(self._changes.popleft()[1])
            while self._next is not None and began + self._next.seconds <= now:
                self._follow(self._next)
                self._next = next(self._moments, None)
            self._deliver(now + self._early)
            if planned is not None:
                self._learn(time.monotonic() - planned)
            self._watch(now)
            ready, planned = self._wait(began)
            now = time.monotonic() - self._early
            for key, mask in self._selector.select(0) if ready else ():
                if isinstance(key.data, Connection):
                    self._do(key.data, key.data.ready, key.fileobj, mask, now)
                elif key.data is obey:
                    if not obey():
                        return
                else:
                    self._accept()

    def close(self) -> None:
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.close()
        self._listener.close()
        self._reserved.close()

    def _wait(self, began: float) -> tuple[bool, float | None]:
        """Wait. Returns whether a socket is ready and, if the time ended the wait, that time."""
        times = [at for path in self._paths if (at := path.next_change(time.monotonic())) is not None]
        if self._changes:
            times.append(began + self._changes[0][0])
        if self._next is not None:
            times.append(began + self._next.seconds)
        due = min(times) if times else None
        wait = None if due is None else max(0.0, due - self._early - time.monotonic())
        # epoll_wait() counts milliseconds, select() microseconds: so `select` waits for the epoll's descriptor.
        ready = bool(select.select([self._selector], [], [], wait)[0])
        return ready, None if ready or not wait else due

    def _learn(self, late: float) -> None:
        """Learn from a delay, in seconds, how much earlier to wake up."""
        if late < _LATEST:
            self._early = min(max(self._early + late / 16, 0.0), _LATEST)

    def _deliver(self, now: float) -> None:
        for path in self._paths:
            for pipe, data in path.arrived(now):
                pipe.push(data)
                if pipe.connection.connected:
                    self._do(pipe.connection, pipe.write)

    def _watch(self, now: float) -> None:
        """Register only events that can be handled; others would end each wait at once."""
        idle = self._state is not None
        for connection in self._connections:
            for end, mask in (dict.fromkeys(connection.watched, 0) if idle else connection.wanted(now)).items():
                if (before := connection.watched[end]) == mask:
                    continue
                connection.watched[end] = mask
                if not mask:
                    self._selector.unregister(end)
                elif before:
                    self._selector.modify(end, mask, connection)
                else:
                    self._selector.register(end, mask, connection)

    def _accept(self) -> None:
        if self._state is not None:
            return
        try:
            near, _ = self._listener.accept()
        except OSError:  # the client has left, or too many files are open
            return
        connection = Connection(near, _socket(self._target), *self._paths)
        self._connections.add(connection)
        with contextlib.suppress(BlockingIOError):
            self._do(connection, connection.far.connect, self._target)

    def _do(self, connection: Connection, what: Callable[..., None], *args: object) -> None:
        """Call a method of a connection, and drop the connection if one of its sockets is lost."""
        if connection not in self._connections:
            return
        try:
            what(*args)
        except BlockingIOError:
            raise
        except OSError:
            self._drop(connection)
        else:
            if connection.ended:
                self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._connections.discard(connection)
        for end, mask in connection.watched.items():
            if mask:
                self._selector.unregister(end)
        connection.close()


def _address(endpoint: str) -> tuple[str, int]:
    check_endpoint(endpoint)
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://"):
        raise InvalidArgument(f"endpoint {endpoint!r} is not a TCP endpoint; use tcp://HOST:PORT")
    return host.strip("[]").replace("*", "0.0.0.0"), 0 if port == "*" else int(port)


def _resolved(place: tuple[str, int]) -> tuple[str, int]:
    """Replace a name by its address, IPv4 if it has one, else IPv6. Raises FailedPrecondition if it has none."""
    try:
        found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise FailedPrecondition(f"host {place[0]!r} cannot be looked up: {said}") from None
    family = socket.AF_INET if any(f == socket.AF_INET for f, *_ in found) else socket.AF_INET6
    address = next(address for f, _, _, _, address in found if f == family)
    host, zone = str(address[0]), place[0].partition("%")[1:]
    return host if "%" in host else host + "".join(zone), place[1]


def _socket(place: tuple[str, int]) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in place[0] else socket.AF_INET)


def _bound(place: tuple[str, int]) -> socket.socket:
    bound = _socket(place)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(place)
    except OSError as error:
        bound.close()
        raise FailedPrecondition(f"cannot listen at {place[0]}:{place[1]}: {error.strerror or error}") from None
    return bound


def _listening(place: tuple[str, int]) -> socket.socket:
    listener = _bound(place)
    try:
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise FailedPrecondition(f"cannot listen at {place[0]}:{place[1]}: {error.strerror or error}") from None
    listener.setblocking(False)
    return listener
