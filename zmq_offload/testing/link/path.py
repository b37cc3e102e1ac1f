"""One direction of an emulated link: what is put in at one end comes out at the other, later. Pure.

Bytes queue for the link's bandwidth, one after the other, whatever connection they are of. Then they are under way for
the delay, as many at a time as that takes, and never overtake each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from zmq_offload.testing.link.conditions import Conditions

K = TypeVar("K")

QUEUE = 0.02
"""Seconds of sending that may wait for the bandwidth. What is more than that waits with its sender. It must outlast the
relay's being late, or the link would stand idle with senders waiting."""

HELD = 32 << 20
"""Bytes that a path holds at most, also where no bandwidth bounds them."""

_STEP = 0.001
_SMALLEST, _LARGEST = 1460, 65536
"""Seconds of sending that are taken in at a time, and the bounds of that in bytes: a packet, and what a read gives."""


class Path(Generic[K]):
    """`take` what is put in, `arrived` is what comes out; `next_change` says when to look again.

    `K` is what the bytes belong to. `random` gives numbers from 0 to 1, for the jitter.
    """

    def __init__(self, conditions: Conditions, random: Callable[[], float]) -> None:
        self._random = random
        self._under_way: deque[tuple[float, K, bytes]] = deque()
        self._held = 0
        self._free_at = 0.0  # when all that was taken has been sent
        self._last = 0.0  # when the last of it arrives
        self._stalled_at: float | None = None
        self.change(conditions)

    def change(self, conditions: Conditions) -> None:
        """New conditions, for what is taken from now on."""
        self._conditions = conditions
        rate = conditions.bandwidth
        self.step = _LARGEST if rate is None else int(min(max(rate / 8 * _STEP, _SMALLEST), _LARGEST))
        """Bytes to take in at a time."""

    @property
    def held(self) -> int:
        """Bytes taken that have not arrived."""
        return self._held

    def has_room(self, now: float) -> bool:
        """Whether more may be taken: what does not fit waits with its sender."""
        return self._stalled_at is None and self._held < HELD and self._free_at - now < QUEUE

    def take(self, key: K, data: bytes, now: float) -> None:
        """Take bytes in; none of them stands for the end of what `key` sends."""
        rate = self._conditions.bandwidth
        began = max(now, self._free_at)
        self._free_at = began if rate is None else began + len(data) * 8 / rate
        delay = self._conditions.rtt / 2 + (self._random() - 0.5) * self._conditions.jitter
        self._last = max(self._last, self._free_at + delay)
        self._under_way.append((self._last, key, data))
        self._held += len(data)

    def arrived(self, now: float) -> Iterator[tuple[K, bytes]]:
        """What has arrived by now, in order."""
        while self._stalled_at is None and self._under_way and self._under_way[0][0] <= now:
            _, key, data = self._under_way.popleft()
            self._held -= len(data)
            yield key, data

    def next_change(self, now: float) -> float | None:
        """When something arrives, or room is there again; None if neither is to come."""
        if self._stalled_at is not None:
            return None
        times = [self._under_way[0][0]] if self._under_way else []
        if self._free_at - now >= QUEUE:
            times.append(self._free_at - QUEUE / 2)  # not for each step that gets free
        return min(times, default=None)

    def stall(self, now: float) -> None:
        """Nothing moves until `resume`."""
        if self._stalled_at is None:
            self._stalled_at = now

    def resume(self, now: float) -> None:
        """Everything goes on from where it was."""
        if self._stalled_at is not None:
            lost = now - self._stalled_at
            self._stalled_at = None
            self._under_way = deque((at + lost, key, data) for at, key, data in self._under_way)
            self._free_at += lost
            self._last += lost

    def clear(self) -> None:
        """Forget what is under way: its connections are gone."""
        self._under_way.clear()
        self._held = 0
        self._free_at = self._last = 0.0
