"""How clients spread over brokers of which one ends and comes back: `python -m tests.simulation.homecoming`.

The real decisions of clients in simulated time: 40 clients of three brokers call all the time. One broker ends at 10 s
and is back at 60 s. The table has the clients of each broker, and how many have gone back within the last second.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

from zmq_offload.client.session import RetryPolicy
from zmq_offload.client.spread import Return, in_order

BROKERS = [f"tcp://edge-{number}:5555" for number in range(3)]
STEP = 0.1
"""Seconds between two calls of a client."""


class Moment(NamedTuple):
    time: float
    clients: Counter[str]
    moved: int
    """Clients that went back within the last second."""


class Client:
    def __init__(self, chance: random.Random, policy: RetryPolicy) -> None:
        self.order = in_order(BROKERS, chance.randbytes(16), spread=True)
        self.at = self.order[0]
        self.silent_since: float | None = None
        self._patience = policy.patience
        self._return = Return(self.order, policy.come_back, chance.random)

    def call(self, now: float, alive: set[str]) -> bool:
        """Whether it went back to a broker before that."""
        back = self._return.look(self.at, now)
        if back in alive:
            assert back is not None
            self.at = back
            self._return.came(back, now)
        if self.at in alive:
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = now
        elif now >= self.silent_since + self._patience:
            self.at = self.order[(self.order.index(self.at) + 1) % len(self.order)]
            self.silent_since = None
        return back in alive


def spread(clients: int, down: tuple[float, float], seconds: float, seed: int = 1) -> list[Moment]:
    """Each second of a history in which the last broker is down for a while."""
    chance = random.Random(seed)
    policy = RetryPolicy()
    callers = [Client(chance, policy) for _ in range(clients)]
    moments = []
    moved = 0
    for step in range(round(seconds / STEP) + 1):
        now = step * STEP
        alive = set(BROKERS[:-1] if down[0] <= now < down[1] else BROKERS)
        moved += sum([caller.call(now, alive) for caller in callers])
        if step % round(1 / STEP) == 0:
            moments.append(Moment(now, Counter(caller.at for caller in callers), moved))
            moved = 0
    return moments


if __name__ == "__main__":
    print("| second | " + " | ".join(BROKERS) + " | went back |\n|---|" + "---|" * (len(BROKERS) + 1))
    for moment in spread(40, (10.0, 60.0), 150.0):
        if moment.moved or round(moment.time) % 10 == 0:
            counts = " | ".join(str(moment.clients[broker]) for broker in BROKERS)
            print(f"| {moment.time:.0f} | {counts} | {moment.moved} |")
