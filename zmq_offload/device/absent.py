"""Which splits of a bundle cannot be used because nobody serves their model, and when to ask again. Pure."""

from __future__ import annotations

from collections.abc import Container

FIRST, MOST = 1.0, 30.0
"""Seconds until a split is tried again: after the first refusal, and after many in a row."""


class Absent:
    """The splits that were refused, by their numbers."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.splits: dict[int, tuple[float, float]] = {}
        """When each is tried again, and after which pause."""

    def refused(self, split: int, now: float) -> bool:
        """Nobody serves the split's model. Returns whether that is new."""
        before = self.splits.get(split)
        pause = FIRST if before is None else min(2 * before[1], MOST)
        self.splits[split] = now + pause, pause
        return before is None

    def served(self, split: int) -> bool:
        """The split's model replied. Returns whether it was refused before."""
        return self.splits.pop(split, None) is not None

    def instead(self, wanted: int, tried: Container[int], now: float) -> int | None:
        """The split to use where `wanted` would be best: itself, or the nearest in the bundle's order that may be
        there. None: all were `tried`, or refused a short time ago. What is wanted is tried in any case, unless it was:
        somebody has to find out that it is there again."""
        if wanted not in tried and not self._away(wanted, now):
            return wanted
        others = [split for split in range(self._count) if split not in tried and not self._away(split, now)]
        if others:
            return min(others, key=lambda split: (abs(split - wanted), split))
        return None if tried else wanted

    def _away(self, split: int, now: float) -> bool:
        return split in self.splits and now < self.splits[split][0]
