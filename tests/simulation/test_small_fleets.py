"""Fleets of one to three workers, which one request can take down, and roll-outs over small fleets."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.network import World
from tests.simulation.processes import BROKER, Broker, Client, Worker

LONG = 300.0
"""Seconds; more than a supervisor needs for all starts together."""


class SlowToStart(Worker):
    """A worker whose supervisor starts another at once, or later if it ends repeatedly."""

    def crash(self, back_in: float = 0.2) -> None:
        super().crash(self.world.chance.choice((0.1, 1.0, 4.5)))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_takes_down_every_worker_of_a_small_fleet_is_given_up_and_all_else_is_served(workers: int) -> None:
    for seed in range(60):
        world = World(seed)
        brokers = [Broker(world, "broker")]
        fleet = [SlowToStart(world, n, brokers, 2, [("m", 1)], world.chance.choice((1, 4))) for n in range(workers)]
        culprit, others = Client(world, 0, brokers), [Client(world, n, brokers) for n in (1, 2)]
        calls = 0
        for client in others:
            for _ in range(3):
                world.at(world.chance.uniform(0, 20), client.call, LONG, "m", 0, 0, {"sleep": 0.01})
                calls += 1
        world.at(world.chance.uniform(1, 5), culprit.call, LONG, "m", 0, 0, {"kill": 1})
        world.run_until(100)
        assert list(culprit.outcomes.values()) == ["ABORTED"], f"seed {seed}: {culprit.outcomes}"
        deaths = sum(worker.lives - 1 for worker in fleet)
        assert deaths == BROKER.max_attempts, f"seed {seed}: {deaths} workers were taken down"
        outcomes = Counter(outcome for client in others for outcome in client.outcomes.values())
        assert outcomes == {"served": calls}, f"seed {seed}: {outcomes}"


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_a_roll_out_under_load_serves_all_and_ends_on_the_new_version(workers: int) -> None:
    for seed in range(6):
        world = World(seed)
        brokers = [Broker(world, "broker")]
        fleet = [Worker(world, n, brokers, 2, [("m", 1)], 1) for n in range(workers)]
        clients = [Client(world, n, brokers) for n in range(3)]
        for client in clients:
            for _ in range(150):
                world.at(world.chance.uniform(0, 30), client.call, 10.0, "m", 0, 0, {"sleep": 0.02})
        for at, worker in enumerate(fleet):
            held = [("m", 2)] if seed % 2 else [("m", 1), ("m", 2)]
            world.at(5 + 20 * at / workers + world.chance.uniform(0, 1), worker.deploy, held)
            if seed % 3 == 0 and workers > 1:
                world.at(world.chance.uniform(5, 25), worker.crash)
        world.run_until(45)
        outcomes = Counter(outcome for client in clients for outcome in client.outcomes.values())
        assert outcomes == {"served": 450}, f"seed {seed}: {outcomes}"
        last = [client.call(5.0, "m", 0, 0, {"sleep": 0.01}) for client in clients]
        versions = brokers[0].core.ledger.scheduler.pools
        assert {pool.version for wanted, pool in versions.items() if wanted.version == 0} == {2}
        world.run_until(50)
        assert all(client.outcomes[number] == "served" for client, number in zip(clients, last, strict=True))
