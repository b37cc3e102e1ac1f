"""Connects a plain socket to tcp://HOST:PORT or ipc://PATH without waiting."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from zmq_offload.net.addresses import Lookup, host_of, unix_address

LOOK_AGAIN = 0.01
"""Seconds between two looks for the result of a look-up of a name."""


class Dial:
    """An attempt to connect. Call `step` at once, and again when `fileno` is writable, or after `LOOK_AGAIN` seconds
    if it is None."""

    def __init__(self, endpoint: str, lookup: Lookup | None = None) -> None:
        self._socket: socket.socket | None = None
        self._places: list[tuple[int, Any]] | None = None
        self.lookup = lookup
        """For the next attempt, so that a name that is being looked up is not looked up again."""
        host = host_of(endpoint)
        if host is None:
            self._places = [(socket.AF_UNIX, unix_address(endpoint))]
        elif lookup is None or lookup.found is not None:
            self.lookup = Lookup(host, int(endpoint.rpartition(":")[2]))

    def fileno(self) -> int | None:
        return None if self._socket is None else self._socket.fileno()

    def step(self) -> socket.socket | None:
        """The socket, which is the caller's then, or None if it is not connected yet.

        Raises OSError when no address is left to try.
        """
        if self._places is None:
            assert self.lookup is not None
            if self.lookup.found is None:
                return None
            self._places = list(self.lookup.found)
        while True:
            try:
                if self._socket is None:
                    self._next()
                return self._connected()
            except BlockingIOError:  # noqa: PERF203  (the next address is tried after an error)
                return None
            except OSError:
                self.close()
                if not self._places:
                    raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _next(self) -> None:
        """Begin to connect to the next address."""
        assert self._places is not None
        if not self._places:
            raise OSError(errno.EADDRNOTAVAIL, "the name has no address")
        family, place = self._places.pop(0)
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        try:
            self._socket.connect(place)
        except BlockingIOError as error:
            # A Unix socket whose queue is full says EAGAIN, and does not go on to connect.
            if error.errno != errno.EINPROGRESS:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "too many wait for the other end") from None
            raise

    def _connected(self) -> socket.socket:
        connected = self._socket
        assert connected is not None
        if (code := connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) != 0:
            raise OSError(code, os.strerror(code))
        try:
            place = connected.getpeername()
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                raise BlockingIOError from None
            raise
        if place and place == connected.getsockname():
            # TCP connects a socket to itself if it got the port for which it looks, and keeps the port from a broker.
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there")
        self._socket = None
        return connected
