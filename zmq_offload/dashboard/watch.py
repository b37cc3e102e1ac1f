"""Looks at a broker once a second, and tells the viewers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from zmq_offload.dashboard.excerpt import excerpt
from zmq_offload.dashboard.history import History
from zmq_offload.dashboard.viewers import Pipe, Viewers, event
from zmq_offload.errors import OffloadError

log = logging.getLogger("dashboard")

EVERY = 1.0
"""Seconds between two looks."""

_VERSIONS = 1000
"""Versions for which there is a look a second: it costs 30 ms of CPU time. With more of them there are fewer looks."""

_SLOWEST = 4.0
"""Seconds between two looks at most, so that what happens now is always known."""

TIMEOUT = 2.0
"""Seconds that a broker may take to answer."""

Ask: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
"""Asks a broker for its status. Raises OffloadError."""


class Watch:
    """The history of a broker, and those who look at it. It belongs to the running event loop."""

    def __init__(self, ask: Ask) -> None:
        self.viewers = Viewers()
        self._ask = ask
        self._history = History()
        self._now = asyncio.get_running_loop().time

    async def run(self) -> None:
        """Look until this is canceled."""
        while True:
            until = self._now() + pause_of(await self._look())
            if self.viewers:
                self.viewers.tell(event("update", self._view(changes=True)))
            await asyncio.sleep(max(0.0, until - self._now()))

    def add(self, pipe: Pipe) -> Callable[[], None]:
        """Take a viewer, who gets all that is known. Returns what to call when it is gone."""
        return self.viewers.add(pipe, event("state", self._view(changes=False)))

    async def _look(self) -> int:
        """Returns the number of versions; 0 if no broker answers."""
        try:
            status = await self._ask()
            self._history.add(status, self._now())
            return len(status["models"])
        except OffloadError as error:
            self._history.missed(error.message)
        except Exception:  # the page must live on, and the gateway with it
            log.exception("the status of the broker cannot be used")
            self._history.missed("the broker's status cannot be read; use a broker of the same version")
        return 0

    def _view(self, *, changes: bool) -> bytes:
        return msgspec.json.encode(excerpt(self._history.view(self._now(), changes=changes)))


def pause_of(versions: int) -> float:
    """The seconds between two looks at a broker with so many versions."""
    return EVERY * max(1.0, min(_SLOWEST, versions / _VERSIONS))
