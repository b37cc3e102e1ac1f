"""Load tests: `pytest -m load -s`. Every request must be served and every result right; speeds are printed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from tests.benchmarks.fabric import fabric
from tests.support.processes import Fabric, running, wait_for_workers
from zmq_offload import Client
from zmq_offload.console.progress import Progress
from zmq_offload.loadgen.levels import Level
from zmq_offload.loadgen.measure import measure
from zmq_offload.loadgen.sender import SendPlan
from zmq_offload.loadgen.stats import Summary

pytestmark = pytest.mark.load


@pytest.fixture(scope="module")
def served() -> Iterator[Fabric]:
    with fabric(2) as broker:
        yield broker


def press(served: Fabric, level: Level, nbytes: int, *, processes: int = 1, duration: float = 6.0) -> Summary:
    """Run a load and compare every result. None may fail."""
    x = np.random.default_rng(0).random(max(1, nbytes // 4), dtype=np.float32)
    plan = SendPlan((served.frontend,), "echo", None, {"x": x}, {"x": x}, 60.0, 0, True, 1 << 28, 0)
    quiet = Progress(quiet=True)
    (summary,) = measure(plan, [level], processes=processes, window=1.0, duration=duration, progress=quiet)
    print(
        f"\n{level}, {nbytes:,} bytes: {summary.throughput:,.1f}/s, "
        + ", ".join(f"{name} {value:.3f} ms" for name, value in summary.latency.items())
    )
    assert summary.errors == {} and summary.requests > 0
    return summary


@pytest.mark.parametrize("nbytes", [4, 64, 1024, 16_384, 38_400, 65_536, 262_144, 1 << 20, 4 << 20, 16 << 20, 64 << 20])
def test_ladder_of_sizes(served: Fabric, nbytes: int) -> None:
    press(served, Level(concurrency=1), nbytes)


@pytest.mark.parametrize("clients", [1, 4, 16, 64])
def test_concurrent_clients(served: Fabric, clients: int) -> None:
    """Load from clients with a connection and a thread each."""
    x = np.arange(256, dtype=np.float32)
    end = time.monotonic() + 5
    served_of = [0] * clients
    wrong: list[str] = []

    def use(number: int) -> None:
        with Client(served.frontend, timeout=30) as client:
            while time.monotonic() < end:
                result = client.infer("echo", {"x": x + number})["x"]
                served_of[number] += 1
                if not np.array_equal(result, x + number):
                    wrong.append(f"client {number}")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    least, most, total = (value / 5 for value in (min(served_of), max(served_of), sum(served_of)))
    print(f"\n{clients} clients: {total:,.0f}/s, each {least:,.1f} to {most:,.1f}/s")
    assert wrong == [] and min(served_of) > 0


def test_two_thousand_idle_clients_and_fifty_active(served: Fabric) -> None:
    with Client(served.frontend) as client:
        lost = client.status()["lost_workers"]
    before = press(served, Level(concurrency=50), 1024)
    with ExitStack() as stack:
        for _ in range(4):
            idle = stack.enter_context(running("-m", "tests.benchmarks.idle_clients", served.frontend, "500"))
            idle.wait_for("connected", timeout=120)
        during = press(served, Level(concurrency=50), 1024)
        with Client(served.frontend) as client:
            assert client.status()["lost_workers"] == lost, "idle clients cost workers"
    print(f"with 2,000 idle: {during.throughput / before.throughput:.2f} of the throughput without")


def test_tensors_of_64_megabytes_from_several_clients(served: Fabric) -> None:
    press(served, Level(concurrency=3), 64 << 20, duration=10)
    wait_for_workers(served.frontend, 2)


def test_large_tensors_do_not_ruin_small_requests(served: Fabric) -> None:
    alone = press(served, Level(rate=200), 1024)
    stop = threading.Event()
    large = np.zeros(16 << 20, np.uint8)
    sent = [0]

    def send_large() -> None:
        with Client(served.frontend, timeout=60) as client:
            while not stop.is_set():
                client.infer("echo", {"x": large})
                sent[0] += 1

    thread = threading.Thread(target=send_large)
    thread.start()
    try:
        mixed = press(served, Level(rate=200), 1024, duration=10)
    finally:
        stop.set()
        thread.join(60)
    print(f"{sent[0]} tensors of 16 MB at once: p99 {alone.latency['p99']:.2f} -> {mixed.latency['p99']:.2f} ms")
    assert sent[0] > 0
