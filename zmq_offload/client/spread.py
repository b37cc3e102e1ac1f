"""Which of the brokers that it knows a client tries first, and when it goes back to one that it had to leave. Pure.

Every client has an order of its own, so that the clients of several brokers spread over them, and so that those of a
broker that ends go to all of the others and not all to the same one. When that broker is back, they go back, each at
a time of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

_STEADY = 10
"""A client that has to leave a broker within so many waits after it went back waits twice as long from then on."""

_LONGEST = 16
"""The longest wait, as a multiple of the first."""


def in_order(endpoints: Sequence[str], token: bytes, *, spread: bool) -> list[str]:
    """The endpoints in the order in which the client with this random token tries them.

    Without `spread` as they were given: the first is preferred.
    """
    if not spread:
        return list(endpoints)
    return sorted(endpoints, key=lambda endpoint: hashlib.blake2b(endpoint.encode(), key=token).digest())


class Return:
    """When a client looks whether a broker is back that it would rather have than its own.

    `order` is that of the client. From `wait` to twice as many seconds pass between two looks, by `chance`, which gives
    numbers from 0 to 1: so the clients of a broker that comes back do not return all at once.
    """

    def __init__(self, order: Sequence[str], wait: float, chance: Callable[[], float]) -> None:
        self._order = order
        self._wait, self._chance = wait, chance
        self._factor = 1
        self._rank = 0  # of the client's broker in its order
        self._came_at = -math.inf  # when it last went back to one
        self._due = math.inf
        self._looks = 0  # since it left one

    def look(self, endpoint: str, now: float) -> str | None:
        """The broker to look at now, or None. `endpoint` is the client's broker."""
        rank = self._order.index(endpoint)
        if rank != self._rank:
            self._left(rank, now)
        if now < self._due:
            return None
        candidate = self._order[self._looks % rank]
        self._looks += 1
        self._plan(rank, now)
        return candidate

    def came(self, endpoint: str, now: float) -> None:
        """The client went back to this broker."""
        self._rank, self._came_at = self._order.index(endpoint), now
        self._plan(self._rank, now)

    def _left(self, rank: int, now: float) -> None:
        soon = now < self._came_at + _STEADY * self._factor * self._wait
        self._factor = min(2 * self._factor, _LONGEST) if soon else 1
        # In this order: if Ctrl-C comes between, the next look is at it again.
        self._plan(rank, now)
        self._rank, self._looks = rank, 0

    def _plan(self, rank: int, now: float) -> None:
        wait = self._wait * self._factor * (1 + self._chance())
        self._due = now + wait if rank else math.inf


def served(listing: object) -> set[tuple[object, object]]:
    """The models that a broker listed, with their versions. Empty if it gave no list of models."""
    if not isinstance(listing, list):
        return set()
    return {(each.get("name"), each.get("version")) for each in listing if isinstance(each, dict)}


def is_back(there: set[tuple[object, object]], here: set[tuple[object, object]]) -> bool:
    """Whether a client may go from the broker that it has, which serves `here`, to one that serves `there`.

    Workers come back one after the other. Until all are there, calls would fail that do not fail now.
    """
    return bool(there) and here <= there
