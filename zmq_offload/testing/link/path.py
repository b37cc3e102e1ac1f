"""One direction of an emulated link: when bytes that enter it arrive. Pure.

Bytes of all connections share one queue for the link's bandwidth. Then they travel for the delay, any number at a time,
and never overtake each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from zmq_offload.testing.link.conditions import Conditions

K = TypeVar("K")

QUEUE = 0.02
"""Length of the queue for the bandwidth, in seconds of sending. Further bytes wait at their sender. The queue must last
longer than the relay may be late, or the link would be idle while senders wait."""

HELD = 32 << 20
"""Maximum number of bytes that a path holds, even with unlimited bandwidth."""

_STEP = 0.001
_SMALLEST, _LARGEST = 1460, 65536
"""Size of one read: seconds of sending, and its bounds in bytes (a packet, and what one read returns)."""


class Path(Generic[K]):
    """Bytes enter by `take` and leave by `arrived`; `next_change` says when to look again.

    `K` is the type of the keys to which bytes belong. `random` returns numbers from 0 to 1, for the jitter.
    """

    def __init__(self, conditions: Conditions, random: Callable[[], float]) -> None:
        self._random = random
        self._in_flight: deque[tuple[float, K, bytes]] = deque()
        self._held = 0
        self._free_at = 0.0  # when the queue is empty
        self._last = 0.0  # when the last byte arrives
        self._stalled_at: float | None = None
        self.change(conditions)

    def change(self, conditions: Conditions) -> None:
        """Use other conditions for bytes that enter from now on."""
        self._conditions = conditions
        rate = conditions.bandwidth
        self.step = _LARGEST if rate is None else int(min(max(rate / 8 * _STEP, _SMALLEST), _LARGEST))
        """Bytes to read at a time."""

    @property
    def held(self) -> int:
        """Bytes that have entered and not yet arrived."""
        return self._held

    def has_room(self, now: float) -> bool:
        """Whether more bytes may enter; otherwise they wait at their sender."""
        return self._stalled_at is None and self._held < HELD and self._free_at - now < QUEUE

    def take(self, key: K, data: bytes, now: float) -> None:
        """Let bytes enter. Empty `data` marks the end of what `key` sends."""
        rate = self._conditions.bandwidth
        began = max(now, self._free_at)
        self._free_at = began if rate is None else began + len(data) * 8 / rate
        delay = self._conditions.rtt / 2 + (self._random() - 0.5) * self._conditions.jitter
        self._last = max(self._last, self._free_at + delay)
        self._in_flight.append((self._last, key, data))
        self._held += len(data)

    def arrived(self, now: float) -> Iterator[tuple[K, bytes]]:
        """Yield the bytes that have arrived by now, in order."""
        while self._stalled_at is None and self._in_flight and self._in_flight[0][0] <= now:
            _, key, data = self._in_flight.popleft()
            self._held -= len(data)
            yield key, data

    def next_change(self, now: float) -> float | None:
        """Return when bytes arrive or room becomes free, or None."""
        if self._stalled_at is not None:
            return None
        times = [self._in_flight[0][0]] if self._in_flight else []
        if self._free_at - now >= QUEUE:
            times.append(self._free_at - QUEUE / 2)  # not for each read that fits
        return min(times, default=None)

    def stall(self, now: float) -> None:
        """Nothing moves until `resume`."""
        if self._stalled_at is None:
            self._stalled_at = now

    def resume(self, now: float) -> None:
        """End a stall; everything continues from where it was."""
        if self._stalled_at is not None:
            lost = now - self._stalled_at
            self._stalled_at = None
            self._in_flight = deque((at + lost, key, data) for at, key, data in self._in_flight)
            self._free_at += lost
            self._last += lost

    def clear(self) -> None:
        """Drop all bytes, when their connections are closed."""
        self._in_flight.clear()
        self._held = 0
        self._free_at = self._last = 0.0
