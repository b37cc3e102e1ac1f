"""Virtual time, and connections that behave like ZeroMQ's on a network with faults.

A connection is in order both ways. When it breaks, what was on its way is lost, what was not sent yet waits for the
next one, and the broker sees the next one as a new peer. Beyond what TCP would do, a history may also lose or double
single messages: the fabric must end every request even then.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.processes import Broker

KEEPALIVE = 3.0
"""Seconds of silence after which ZeroMQ closes a connection."""


class World:
    """The clock, the random numbers, and the log."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.log: list[tuple[Any, ...]] = []
        self.loss = 0.0
        self.doubling = 0.0
        self.latency = 0.0005
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, time: float, act: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(time, self.now), self._count, act, arguments))

    def run_until(self, end: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, act, arguments = heapq.heappop(heap)
            act(*arguments)
        self.now = end

    def note(self, *what: Any) -> None:
        self.log.append((self.now, *what))


class Connection:
    """A connection of a client or a worker (`owner`, whose `deliver(link, message, payload)` is called) to a broker."""

    def __init__(self, world: World, owner: Any, link: int, broker: Broker) -> None:
        self.world, self.owner, self.link, self.broker = world, owner, link, broker
        self.peer = b""
        self.up = self.closed = False
        self.blocked_until = 0.0
        self._waiting: deque[tuple[Any, Any]] = deque()
        self._era = 0  # of this connection; messages in flight from an earlier one are lost
        self._free_at = [0.0, 0.0]  # when the last message of each direction arrives
        self._connect()

    def _connect(self) -> None:
        if self.up or self.closed:
            return
        world = self.world
        if not self.broker.alive or world.now < self.blocked_until:
            world.at(world.now + world.chance.uniform(0.05, 0.4), self._connect)
            return
        self.up = True
        self._era += 1
        self._free_at = [world.now, world.now]
        self.peer = self.broker.meet(self)
        while self._waiting:
            self._transmit(0, *self._waiting.popleft())

    def send(self, message: Any, payload: Any) -> None:
        """Send from the owner to the broker."""
        if self.up:
            self._transmit(0, message, payload)
        else:
            self._waiting.append((message, payload))

    def send_back(self, message: Any, payload: Any) -> None:
        """Send from the broker to the owner."""
        self._transmit(1, message, payload)

    def _transmit(self, direction: int, message: Any, payload: Any) -> None:
        world = self.world
        if world.loss and world.chance.random() < world.loss:
            world.note(self.owner.name, "network lost", message)
            return
        times = 2 if world.doubling and world.chance.random() < world.doubling else 1
        for _ in range(times):
            arrival = world.now + world.latency * (0.5 + world.chance.random())
            arrival = max(arrival, self._free_at[direction], self.blocked_until)
            self._free_at[direction] = arrival
            world.at(arrival, self._arrive, direction, self._era, message, payload)

    def _arrive(self, direction: int, era: int, message: Any, payload: Any) -> None:
        if era != self._era or not self.up:
            return
        if direction == 0:
            self.broker.receive(self, message, payload)
        else:
            self.owner.deliver(self, message, payload)

    def break_(self) -> None:
        """Lose the messages in flight; the owner connects again."""
        if not self.up:
            return
        self.world.note(self.owner.name, "connection breaks", self.broker.name)
        self.up = False
        self.broker.lose(self)
        if not self.closed:
            self.world.at(self.world.now + self.world.chance.uniform(0.01, 0.1), self._connect)

    def block(self, seconds: float) -> None:
        """A partition: no message passes for a while. If it lasts, ZeroMQ closes the connection."""
        self.blocked_until = self.world.now + seconds
        if seconds > KEEPALIVE:
            self.world.at(self.world.now + KEEPALIVE, self.break_)

    def close(self) -> None:
        self.closed = True
        self._waiting.clear()
        self.break_()
