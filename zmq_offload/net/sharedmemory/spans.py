"""Which parts of an arena are free. Pure."""

from __future__ import annotations

from bisect import bisect_left


class Spans:
    """The free spans of `size` units. The first that is large enough is taken, so that the rest stays untouched."""

    __slots__ = ("_lengths", "_starts", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._starts = [0]
        self._lengths = [size]

    def take(self, length: int) -> int | None:
        """Where `length` units (at least 1) are free now; they are taken. None if no span is that long."""
        for at, free in enumerate(self._lengths):
            if free >= length:
                start = self._starts[at]
                if free == length:
                    del self._starts[at], self._lengths[at]
                else:
                    self._starts[at] += length
                    self._lengths[at] -= length
                return start
        return None

    def free(self, start: int, length: int) -> None:
        """Give back what `take` returned."""
        starts, lengths = self._starts, self._lengths
        at = bisect_left(starts, start)
        if at < len(starts) and starts[at] == start + length:
            length += lengths[at]
            del starts[at], lengths[at]
        if at and starts[at - 1] + lengths[at - 1] == start:
            lengths[at - 1] += length
        else:
            starts.insert(at, start)
            lengths.insert(at, length)

    def all(self) -> list[tuple[int, int]]:
        """Start and length of each free span, in order. No two of them touch."""
        return list(zip(self._starts, self._lengths, strict=True))
