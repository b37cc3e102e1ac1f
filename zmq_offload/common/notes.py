"""Lines for the log of a server, limited in rate. Pure: lines are collected here, and the loop writes them.

A peer can cause lines, for example with malformed messages or refused keys. So each kind of line has a budget. Lines
over the budget are counted, and the next line of that kind says how many were left out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from zmq_offload.errors import printable

_BURST = 20
"""Lines of a kind that may come at once."""
_EVERY = 1.0
"""Seconds until one more line may come."""
_LONGEST = 500
"""Characters of a line."""


class Notes:
    """Lines that were not written yet. `bursts` has the kinds of which more than 20 may come at once."""

    def __init__(self, bursts: Mapping[str, int] | None = None) -> None:
        self._bursts = bursts or {}
        self._lines: list[tuple[int, str]] = []
        self._spent: dict[str, float] = {}  # kind -> lines, minus one for each `_EVERY` since
        self._spent_at: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, now: float, kind: str, text: str, level: int = logging.WARNING) -> None:
        """Add a line of a kind at time `now`, unless the budget of the kind is spent."""
        spent = max(0.0, self._spent.get(kind, 0.0) - (now - self._spent_at.get(kind, now)) / _EVERY)
        self._spent_at[kind] = now
        if spent + 1 > self._bursts.get(kind, _BURST):
            self._spent[kind] = spent
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._spent[kind] = spent + 1
        left_out = self._left_out.pop(kind, 0)
        more = f" ({left_out} lines like this were left out before)" if left_out else ""
        self._lines.append((level, printable(text[:_LONGEST]) + more))

    def take(self) -> list[tuple[int, str]]:
        """Return the lines with their levels of `logging`, and forget them."""
        lines, self._lines = self._lines, []
        return lines
