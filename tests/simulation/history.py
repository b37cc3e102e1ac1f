"""A random history of a fabric, made from a seed: `python -m tests.simulation.history SEED` prints it."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from typing import Any

from broker.invariants import validate_statistics
from tests.simulation.network import Connection, World
from tests.simulation.processes import Broker, Client, Fault, Worker

TROUBLE = 5.0
"""Seconds with calls and faults."""
SETTLE = 9.0
"""Seconds after which a fabric without further faults must serve again: the longest deadline, the grace of a hang, and
the patience of all programs that wait for each other."""


class History:
    """A fabric, calls and faults."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = world = World(seed)
        chance = world.chance
        self.fair = chance.random() < 0.1
        """Whether all calls can be served; then all must be."""
        self.calm = self.fair or chance.random() < 0.15
        """Whether there are no faults. Then no worker may be lost, although calls are canceled, fail and expire."""
        if not self.calm:
            world.latency = chance.choice((0.0005, 0.005, 0.05))
            world.loss = chance.choice((0.0, 0.0, 0.0, 0.03))
            world.doubling = chance.choice((0.0, 0.0, 0.0, 0.1))
        models = [("m", 1)]
        self.brokers = [Broker(world, f"broker{n}") for n in range(chance.choice((1, 1, 2)))]
        self.workers = []
        for n in range(chance.randint(1, 3)):
            more = [*models, *chance.choice(((), (("m", 2),), (("n", 1),)))]
            slots, batch = chance.randint(1, 4), chance.choice((1, 1, 4))
            # A quick worker makes the fleet mixed: requests are held back.
            speed = 20.0 if n and chance.random() < 0.5 else 1.0
            self.workers.append(Worker(world, n, self.brokers, slots, more, batch, ahead=n == 1, speed=speed))
        self.clients = [Client(world, n, self.brokers) for n in range(chance.randint(1, 3))]
        if self.calm:
            for worker in self.workers:
                worker.deadlines = {client.session.token: client.deadlines for client in self.clients}
        for client in self.clients:
            for _ in range(chance.randint(1, 8)):
                world.at(chance.uniform(0, TROUBLE), self._call, client)
        if not self.fair and chance.random() < 0.1:
            flooder, at = chance.choice(self.clients), chance.uniform(0, TROUBLE)
            for _ in range(25):
                world.at(at, self._call, flooder)
        if not self.fair and chance.random() < 0.5:
            for _ in range(chance.randint(1, 3)):
                world.at(chance.uniform(0, TROUBLE), self._configs_change)
        if not self.calm:
            for _ in range(chance.randint(0, 5)):
                world.at(chance.uniform(0, TROUBLE), self._go_wrong)

    def run(self) -> Counter[str]:
        """Return how the calls ended. Raises Fault, with the seed and the log, if an invariant does not hold."""
        try:
            self.world.run_until(TROUBLE)
            self._heal()
            self.world.run_until(TROUBLE + SETTLE)
            self._must_serve()
        except Exception as error:
            # Any exception of a core is a fault, too.
            where = "" if isinstance(error, Fault) else traceback.format_exc()
            raise Fault(f"seed {self.seed}: {type(error).__name__}: {error}\n{where}\n{self.log()}") from error
        outcomes = Counter(outcome for client in self.clients for outcome in client.outcomes.values())
        outcomes["begun ahead"] = sum(worker.begun_ahead for worker in self.workers)
        return outcomes

    def log(self, last: int = 60) -> str:
        lines = [f"{time:9.4f}  " + " ".join(map(str, what)) for time, *what in self.world.log[-last:]]
        for broker in self.brokers:
            lines.append(f"--- {broker.name}")
            for key in broker.core.ledger.requests:
                lines += [f"{key}:", *broker.core.ledger.history(key)]
        return "\n".join(lines)

    # --- what is asked --------------------------------------------------------------------------------------

    def _call(self, client: Client) -> None:
        if not client.alive:
            return
        chance = self.world.chance
        what: dict[str, float] = {"bytes": chance.choice((1, 1, 900))} if not self.fair else {}
        what["sleep"] = chance.choice((0.001, 0.01, 0.1, 0.5))
        if not self.fair and chance.random() < 0.1:
            what["fail" if self.calm else chance.choice(("kill", "hang", "fail"))] = 1
        timeout = 4.0 if self.fair else chance.choice((0.1, 1.0, 4.0))
        model = "m" if self.fair else chance.choice(("m", "m", "m", "n", "unknown"))
        version = chance.choice((0, 0, 1)) if self.fair else chance.choice((0, 0, 1, 2))
        label = "stable" if not self.fair and version == 0 and chance.random() < 0.3 else ""
        number = client.call(timeout, model, version, chance.choice((0, 0, 0, 1, -1)), what, label)
        if not self.fair and chance.random() < 0.15:
            self.world.at(self.world.now + chance.uniform(0, timeout), client.cancel, number)

    def _configs_change(self) -> None:
        """Labels move, and a canary comes, changes or goes. One worker after the other reads of it."""
        chance = self.world.chance
        configs: dict[tuple[str, int], dict[str, Any]] = {("m", 1): {}, ("m", 2): {}}
        if labeled := chance.choice((0, 1, 2)):
            configs["m", labeled]["labels"] = ["stable"]
        if share := chance.choice((0.0, 0.5, 1.0)):
            canary = {"version": chance.choice((1, 2)), "share": share, "min_requests": chance.choice((1, 3))}
            for config in configs.values():
                config["canary"] = canary
        for worker in self.workers:
            self.world.at(self.world.now + chance.choice((0.0, 0.1, 1.0)), worker.configure, configs)

    # --- what goes wrong ------------------------------------------------------------------------------------

    def _go_wrong(self) -> None:
        chance = self.world.chance
        fault = chance.choice(_FAULTS)
        self.world.note("!", fault.__name__.strip("_"))
        fault(self)

    def _worker_dies(self) -> None:
        self.world.chance.choice(self.workers).crash()

    def _worker_stops(self) -> None:
        worker = self.world.chance.choice(self.workers)
        if worker.alive:
            worker.pause(self.world.chance.choice((0.5, 2.0, 5.0)))

    def _worker_drains(self) -> None:
        self.world.chance.choice(self.workers).drain()

    def _models_change(self) -> None:
        chance = self.world.chance
        version = [("m", 1)] if chance.random() < 0.5 else [("m", 1), ("m", 2)]
        chance.choice(self.workers).deploy([*version, *chance.choice(((), (("n", 1),)))])

    def _broker_dies(self) -> None:
        broker = self.world.chance.choice(self.brokers)
        broker.crash()
        self.world.at(self.world.now + self.world.chance.choice((0.2, 2.0)), broker.start)

    def _broker_stops(self) -> None:
        self.world.chance.choice(self.brokers).pause(self.world.chance.choice((0.05, 0.5, 2.0)))

    def _broker_drains(self) -> None:
        self.world.chance.choice(self.brokers).stop()

    def _client_dies(self) -> None:
        self.world.chance.choice(self.clients).crash()

    def _connection_breaks(self) -> None:
        self.world.chance.choice(self._connections()).break_()

    def _partition(self) -> None:
        seconds = self.world.chance.choice((0.3, 2.0, 5.0))
        for connection in self._connections():
            if self.world.chance.random() < 0.5:
                connection.block(seconds)

    def _connections(self) -> list[Connection]:
        return [connection for process in (*self.clients, *self.workers) for connection in process.connections]

    # --- in the end -----------------------------------------------------------------------------------------

    def _heal(self) -> None:
        world = self.world
        world.note("!", "no more faults")
        world.loss = world.doubling = 0.0
        for broker in self.brokers:
            broker.start()
        for connection in self._connections():
            connection.blocked_until = 0.0
        for worker in self.workers:
            if worker.alive and world.now < worker.stopped_until:
                worker.stopped_until = 0.0
                worker._loop(worker.lives)

    def _must_serve(self) -> None:
        """Check that no slot leaked, no peer is forgotten, and no two programs wait for each other."""
        numbers = {c: c.call(4.0, "m", 1, 0, {"sleep": 0.001}) for c in self.clients if c.alive}
        self.world.run_until(TROUBLE + SETTLE + 4.1)
        for client, number in numbers.items():
            if client.outcomes.get(number) != "served":
                raise Fault(f"at the end {client.name}'s call {number} is not served: {client.outcomes.get(number)}")
            if self.fair and set(client.outcomes.values()) != {"served"}:
                raise Fault(f"there was no fault, but {client.name} got {client.outcomes}")
        for broker in self.brokers:
            validate_statistics(broker.core)
            counts = broker.core.ledger.counts
            if self.calm and (counts["lost_workers"] or counts["retried"]):
                raise Fault(f"there was no fault, but {broker.name} lost a worker: {counts}")
            if broker.core.ledger.requests:
                raise Fault(f"{broker.name} still holds {[str(key) for key in broker.core.ledger.requests]}")


_FAULTS = (
    History._worker_dies,
    History._worker_dies,
    History._worker_stops,
    History._worker_drains,
    History._models_change,
    History._broker_dies,
    History._broker_stops,
    History._broker_drains,
    History._client_dies,
    History._connection_breaks,
    History._partition,
)


if __name__ == "__main__":
    history = History(int(sys.argv[1]))
    outcomes = history.run()
    print(history.log(last=10_000))
    print(dict(outcomes))
