"""The broker's two ports, frontend and backend: connections, messages in and out.

With keys libzmq serves them (`libzmq`), because it encrypts. Without keys plain sockets do (`streams`), which cost less
and know which connection ended. Peers notice no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from broker.events import Action, Event
from broker.ways import Ways

UNREAD_BY_PEER = 256
"""Messages queued for one peer that does not read. Further ones come back undelivered."""


class Ports(Protocol):
    """Both ports of a broker. The constructor binds, so that `frontend` and `backend` have the real port numbers."""

    frontend: str
    backend: str
    due: float
    """When `wait` is to be called even if nothing happens: it has something to do itself."""

    @property
    def ways(self) -> Ways:
        """How peers are connected."""

    def wait(self, seconds: float | None) -> Sequence[Event]:
        """What has come, after waiting at most so long for it (None: without a limit).

        A peer's messages come before the news that its connection ended, or that a message to it was not delivered.
        """

    def send(self, actions: Sequence[Action]) -> None:
        """Send messages. Those that cannot be delivered come back by `wait`."""

    def close(self) -> None:
        """Close the ports. Queued messages still go out, if their peers read them within a second."""
