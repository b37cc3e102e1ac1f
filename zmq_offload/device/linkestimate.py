"""What a link takes for a message of so many bytes, from the messages that it carried lately. Pure."""

from __future__ import annotations

FORGET, SURPRISED = 0.9, 0.3
"""How much messages count in comparison with the next one, and with one that shows that the link has changed."""

STEP = 2.0
"""A link has changed if a message takes so many times as long as predicted, or that part of it."""

PRIOR = 0.05
"""How much the assumption counts in comparison with a message."""

ROUND_TRIP, PER_BYTE = 0.005, 1e-7
"""The assumption, in seconds: 5 ms, and 80 Mbit/s."""

_UNIT = 1e5
"""Bytes: a scale in which both unknowns are of one size."""


class LinkEstimate:
    """Round trip and time for each byte: a line through the times of messages, with forgetting.

    Messages of one size tell where the line passes and not how steep it is. What they do not tell stays as it was,
    because the estimate so far stands in for messages that are forgotten.
    """

    __slots__ = ("_slope", "_start", "_sums", "deviation", "samples")

    def __init__(self) -> None:
        self._start, self._slope = ROUND_TRIP, PER_BYTE * _UNIT
        self._sums = [PRIOR, 0.0, PRIOR, PRIOR * self._start, PRIOR * self._slope]
        self.deviation = 0.0
        self.samples = 0

    @property
    def round_trip(self) -> float:
        return self._start

    @property
    def per_byte(self) -> float:
        return self._slope / _UNIT

    def add(self, nbytes: int, seconds: float) -> None:
        """A message and its reply of `nbytes` together took so many seconds on the link."""
        x = nbytes / _UNIT
        expected = self.predicted(nbytes)
        miss = abs(seconds - expected)
        keep = FORGET if expected / STEP <= seconds <= expected * STEP else SURPRISED
        self.deviation = miss if not self.samples else self.deviation + (miss - self.deviation) / 4
        self.samples += 1
        kept = [keep * value for value in self._sums]
        anew = PRIOR * (1 - keep)
        kept[0] += anew
        kept[2] += anew
        kept[3] += anew * self._start
        kept[4] += anew * self._slope
        ones, xs, squares, times, products = (
            kept[0] + 1,
            kept[1] + x,
            kept[2] + x * x,
            kept[3] + seconds,
            kept[4] + seconds * x,
        )
        self._sums = [ones, xs, squares, times, products]
        determinant = ones * squares - xs * xs
        start = (times * squares - products * xs) / determinant
        slope = (products * ones - times * xs) / determinant
        if slope < 0:
            start, slope = times / ones, 0.0
        elif start < 0:
            start, slope = 0.0, products / squares
        self._start, self._slope = start, slope

    def predicted(self, nbytes: int) -> float:
        """Seconds for a message and its reply of `nbytes` together."""
        return self._start + self._slope * nbytes / _UNIT
