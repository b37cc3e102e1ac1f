"""Serves /metrics over HTTP, in a thread of its own. The programs' own loops know nothing of it.

The thread takes the interpreter's lock from the program's loop, so it never keeps it for long: it makes the text in
small pieces, and rests after each. It needs nothing of the loop: the families read its numbers as they are.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from zmq_offload.errors import FailedPrecondition
from zmq_offload.net import addresses
from zmq_offload.telemetry.exposition import Family, text_of
from zmq_offload.telemetry.scrapes import HEAD_BYTES, answer

log = logging.getLogger("metrics")

MOST_CONNECTIONS = 16
"""One more takes the place of the one that is there for longest."""

_BACKLOG = 128
"""Connections that wait to be accepted."""

PATIENCE = 5.0
"""Seconds that a connection may take to send its request, and again to read a part of the answer."""

_FRESH = 0.25
"""Seconds in which a text is sent again: many scrapes cost no more than four a second."""

_PIECE = 64
"""Lines that are made between two rests, in about 0.1 ms."""

_REST = 0.0001
"""Seconds. Without a real rest, a loop that waits for the interpreter's lock would get it only after 5 ms."""

_LINGER = 0.5
"""Seconds in which the other end may read the answer before its connection is closed for good."""


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    until: float
    received: bytes = b""
    unsent: list[memoryview] = field(default_factory=list)
    ends: bool = False
    """Everything is sent; what still comes is dropped until the other end closes."""


class MetricsServer:
    """Serves the families of `sources`, one after the other, at HOST:PORT from now on; `close` ends it.

    Raises FailedPrecondition if the address is taken or is not one of this machine. `address` has the real port.
    """

    def __init__(self, address: str, *sources: Callable[[], Iterable[Family]]) -> None:
        self._sources = sources
        self._listener = _bind(address)
        host, number = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
        self._stop, self._stopped = socket.socketpair()
        self._text: bytearray | None = None
        self._made_at = -_FRESH
        self._connections: dict[int, _Connection] = {}  # the one that is there for longest is first
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stopped, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port and all connections."""
        self._stop.send(b"x")
        self._thread.join()

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        with contextlib.ExitStack() as stack:
            for closing in (self._stop, self._stopped, self._listener, self._selector):
                stack.callback(closing.close)
            while True:
                now = time.monotonic()
                due = min((each.until for each in self._connections.values()), default=None)
                ready = self._selector.select(None if due is None else max(0.0, due - now))
                for key, _ in ready:
                    if key.fileobj is self._stopped:
                        for connection in list(self._connections.values()):
                            self._end(connection)
                        return
                    if key.fileobj is self._listener:
                        self._accept()
                    elif (connection := key.data) in self._connections.values():
                        self._serve(connection)
                now = time.monotonic()
                for connection in [each for each in self._connections.values() if now >= each.until]:
                    self._end(connection)

    # --- connections ----------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:  # it is gone already, or there are no files left
            time.sleep(0.01)
            return
        accepted.setblocking(False)
        if len(self._connections) == MOST_CONNECTIONS:
            self._end(next(iter(self._connections.values())))
        connection = _Connection(accepted, time.monotonic() + PATIENCE)
        self._connections[accepted.fileno()] = connection
        self._selector.register(accepted, selectors.EVENT_READ, connection)

    def _serve(self, connection: _Connection) -> None:
        try:
            if connection.ends:
                alive = bool(connection.socket.recv(4096))
            elif connection.unsent:
                alive = self._send(connection)
            else:
                alive = self._receive(connection)
        except BlockingIOError:
            return
        except OSError:
            alive = False
        if not alive:
            self._end(connection)

    def _receive(self, connection: _Connection) -> bool:
        got = connection.socket.recv(HEAD_BYTES)
        connection.received += got
        whole = answer(connection.received, self._made)
        if whole is None:
            return bool(got)
        connection.unsent = [memoryview(part) for part in whole if part]
        self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
        connection.until = time.monotonic() + PATIENCE
        return self._send(connection)

    def _send(self, connection: _Connection) -> bool:
        first, *others = connection.unsent
        rest = first[connection.socket.send(first) :]
        connection.unsent = [rest, *others] if rest else others
        connection.until = time.monotonic() + PATIENCE
        if not connection.unsent:
            # A connection that is closed while something of its other end is unread is reset, and the answer is lost.
            connection.socket.shutdown(socket.SHUT_WR)
            self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
            connection.ends, connection.until = True, time.monotonic() + _LINGER
        return True

    def _end(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        del self._connections[connection.socket.fileno()]
        connection.socket.close()

    # --- the text -------------------------------------------------------------------------------------------

    def _made(self) -> bytearray | None:
        """The metrics, as they are now or were a moment ago; None if they cannot be made."""
        if time.monotonic() >= self._made_at + _FRESH:
            try:
                self._text = text_of(self._lines())
            except Exception:
                log.exception("the metrics cannot be made")
                self._text = None
            self._made_at = time.monotonic()
        return self._text

    def _lines(self) -> Iterable[str]:
        made = 0
        for source in self._sources:
            for family in source():
                for line in family.lines():
                    yield line
                    made += 1
                    if made % _PIECE == 0:
                        time.sleep(_REST)


def _bind(address: str) -> socket.socket:
    """A socket that listens at HOST:PORT; the host `*` is all addresses of IPv4."""
    host, _, port = addresses.to_bind(f"tcp://{address}").removeprefix("tcp://").rpartition(":")
    try:
        found = socket.getaddrinfo("0.0.0.0" if host == "*" else host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, _, _, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        with contextlib.ExitStack() as stack:
            bound = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(where)
            bound.listen(_BACKLOG)
            bound.setblocking(False)
            stack.pop_all()
    except OSError as error:
        raise FailedPrecondition(
            f"cannot listen at {address}: {error.strerror}; choose another address with --metrics"
        ) from None
    return bound
