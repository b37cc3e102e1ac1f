"""Who looks at the page: server-sent events for a bounded number of viewers. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

MOST = 32
"""Viewers at once."""

UNREAD_BYTES = 1024 * 1024
"""A viewer with more bytes that it has not read is dropped: nothing is kept for one that is too slow."""


class Pipe(Protocol):
    """The connection of a viewer."""

    def send(self, part: bytes) -> int:
        """Send bytes; how many bytes in all the other end has not taken yet."""

    def abort(self) -> None:
        """Close the connection at once."""


class Viewers:
    """Those who look now."""

    def __init__(self) -> None:
        self._pipes: set[Pipe] = set()

    def __len__(self) -> int:
        return len(self._pipes)

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return len(self._pipes) >= MOST

    def add(self, pipe: Pipe, first: bytes) -> Callable[[], None]:
        """Take a viewer, who gets `first`. Returns what to call when it is gone."""
        self._pipes.add(pipe)
        pipe.send(first)
        return lambda: self._pipes.discard(pipe)

    def tell(self, event: bytes) -> None:
        """Send an event to all, and drop those who do not read."""
        for pipe in list(self._pipes):
            if pipe.send(event) > UNREAD_BYTES:
                self._pipes.discard(pipe)
                pipe.abort()


def event(name: str, data: bytes) -> bytes:
    """A server-sent event. `data` is one line, as JSON is."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
