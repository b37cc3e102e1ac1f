"""The open connections of all ports, of whatever protocol."""

from __future__ import annotations

from typing import Protocol


class Connection(Protocol):
    """A client's connection. Each adds itself to `Connections` when it is made, and removes itself when it is lost."""

    def drain(self) -> None:
        """Finish what runs and close then: after a moment of silence if nothing runs, since a request may be under way.

        Answers say that the connection closes (`Connection: close`, GOAWAY).
        """

    def abort(self) -> None:
        """Close at once."""


class Connections:
    """At most `most` connections. `draining` says that new ones drain, too."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Connection] = set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> bool:
        """Whether there was room. Without room the connection closes itself."""
        if len(self._open) >= self._most:
            return False
        self._open.add(connection)
        if self.draining:
            connection.drain()
        return True

    def remove(self, connection: Connection) -> None:
        """The connection is lost. One that was not added may be removed, too."""
        self._open.discard(connection)

    def drain(self) -> None:
        """Drain all, and those that are added later."""
        self.draining = True
        for connection in list(self._open):
            connection.drain()

    def abort(self) -> None:
        """Close all at once."""
        for connection in list(self._open):
            connection.abort()
