"""When to ask the broker for its models again. Pure: the time is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from zmq_offload.errors import OffloadError
from zmq_offload.gateway.catalog import Catalog

FRESH = 0.25
"""Seconds for which an answer of the broker is used again."""

RECENT = 0.02
"""Seconds for which an answer without the wanted model, or without any, is used again: somebody may have just added
it."""

Waiter: TypeAlias = Callable[["Catalog | OffloadError"], None]


class Inquiry:
    """The last answer of the broker, and who waits for the next. One query at a time serves all who wait."""

    def __init__(self) -> None:
        self.catalog: Catalog | None = None
        """The last answer, however old."""
        self._answered_at = -math.inf
        self._waiting: dict[int, Waiter] = {}
        self._asked = False
        self._last = 0

    def known(self, name: str | None, version: int | None, now: float) -> Catalog | None:
        """The last answer if it is young enough for somebody who wants this model, or None for all models."""
        catalog = self.catalog
        if catalog is None:
            return None
        missing = not catalog.models or (name is not None and not catalog.has(name, version))
        return catalog if now - self._answered_at < (RECENT if missing else FRESH) else None

    def wait(self, waiter: Waiter) -> tuple[int, bool]:
        """Add somebody who waits. Return a number for `leave`, and whether to send the query."""
        self._last += 1
        self._waiting[self._last] = waiter
        ask, self._asked = not self._asked, True
        return self._last, ask

    def leave(self, number: int) -> None:
        """Somebody does not wait any more. Does nothing after the answer."""
        self._waiting.pop(number, None)

    def answered(self, answer: Catalog | OffloadError, now: float) -> list[Waiter]:
        """The query has ended; return whom to tell."""
        self._asked = False
        if isinstance(answer, Catalog):
            self.catalog, self._answered_at = answer, now
        waiting, self._waiting = list(self._waiting.values()), {}
        return waiting
