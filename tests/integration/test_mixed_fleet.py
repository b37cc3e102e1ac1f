"""Workers of different speed serve one model: the quick one gets what it does sooner."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.processes import eventually, running_broker, running_workers, status
from zmq_offload import Client
from zmq_offload.testing.link import Link

X = {"x": np.arange(4, dtype=np.float32)}
SHORT = {"sleep": np.array(0.01)}


@pytest.fixture
def frontend() -> Iterator[str]:
    """A broker with an echo worker on its host, and one that is 40 ms away and so is slow."""
    with running_broker() as broker, Link(broker.backend, rtt="40ms") as link:
        echo = ("--executor", "echo", "--slots", "2", "--name")
        near = running_workers(broker.backend, *echo, "near", program="tests.support.faulty_worker")
        far = running_workers(link.endpoint, *echo, "far", program="tests.support.faulty_worker")
        with near, far:
            eventually(lambda: len(status(broker.frontend)["workers"]) == 2, 20)
            yield broker.frontend


def served(frontend: str) -> dict[str, int]:
    return {worker["name"].split("-")[0]: worker["served"] for worker in status(frontend)["workers"]}


def test_the_quick_worker_serves_what_it_does_sooner(frontend: str) -> None:
    with Client(frontend) as client:
        for _ in range(50):
            client.infer("echo", X)
        before = served(frontend)
        for _ in range(200):
            client.infer("echo", X)
        after = served(frontend)
    assert after["far"] - before["far"] < 20, (before, after)
    takes = {worker["name"]: worker["takes"]["echo:1"] for worker in status(frontend)["workers"]}
    assert takes["near"] < 0.04 < takes["far"] < 1, "the way counts, too"


def test_a_burst_goes_to_the_slow_worker_too(frontend: str) -> None:
    with Client(frontend) as client:
        for _ in range(50):
            client.infer("echo", SHORT)
        before = served(frontend)
        futures = [client.submit("echo", SHORT) for _ in range(40)]
        for future in futures:
            future.result(30)
    after = served(frontend)
    assert after["near"] + after["far"] == before["near"] + before["far"] + 40
    assert after["far"] > before["far"] + 5, (before, after)
