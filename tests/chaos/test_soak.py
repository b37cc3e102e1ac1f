"""Ten minutes of mixed load with a kill every 20 s: memory and open files must not grow.

`pytest -m soak -s tests/chaos`; ZMQ_OFFLOAD_SOAK sets the seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import defaultdict

import numpy as np
import pytest

from tests.support.memory import MB, open_files, resident_bytes
from tests.support.processes import (
    Fabric,
    Process,
    faulty_workers,
    running_broker,
    status,
    wait_for_workers,
    worker_pids,
)
from tests.support.traffic import traffic

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("ZMQ_OFFLOAD_SOAK", "600"))
EVERY = 20.0


def slope(points: list[tuple[float, float]]) -> float:
    """The slope of the least-squares line, per minute, without the first fifth, in which caches fill."""
    points = points[len(points) // 5 :]
    times, values = np.array(points).T
    return float(np.polyfit(times, values, 1)[0] * 60)


def test_nothing_grows() -> None:
    with (
        running_broker() as broker,
        faulty_workers(broker.backend, "--processes", "3", "--drain", "2", slots=4) as supervisor,
    ):
        wait_for_workers(broker.frontend, 3)
        _soak(broker, supervisor)


def _soak(broker: Fabric, supervisor: Process) -> None:
    chance = random.Random(1)
    memory: dict[str, list[tuple[float, float]]] = defaultdict(list)
    files: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with (
        traffic(broker.frontend, clients=2, depth=4, elements=100) as small,
        traffic(broker.frontend, clients=2, depth=2, elements=100_000) as large,
        traffic(broker.frontend, clients=1, depth=2, extra={"sleep": np.array(0.05)}) as slow,
        traffic(broker.frontend, clients=1, depth=8, timeout=0.01, extra={"sleep": np.array(0.02)}) as hasty,
    ):
        loads = {"small": small, "large": large, "slow": slow, "hasty": hasty}
        broker_pid = broker.broker.popen.pid
        # This worker is not killed, so that it can be measured all the time.
        kept = worker_pids(broker.frontend)[0]
        watched = {"broker": broker_pid, "worker": kept, "supervisor": supervisor.popen.pid, "clients": os.getpid()}
        started = time.monotonic()
        kills = 0
        next_kill = started + EVERY
        while (now := time.monotonic()) < started + SECONDS:
            for name, pid in watched.items():
                memory[name].append((now - started, resident_bytes(pid) / MB))
                files[name].append((now - started, open_files(pid)))
            for load in loads.values():
                load.latencies.clear()  # the test's own memory is measured, too
                load.queued.clear()
            if now >= next_kill:
                next_kill += EVERY
                victims = [pid for pid in worker_pids(broker.frontend) if pid != kept]
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(chance.choice(victims), signal.SIGKILL)
                    kills += 1
            time.sleep(1)  # between two samples
        requests = status(broker.frontend)["requests"]
    print(f"\n{SECONDS:.0f} s, {kills} kills, {requests['served']} served, {requests['retried']} retried")
    for name, load in loads.items():
        print(f"  {name}: {load.served} served, {load.wrong} wrong, errors {dict(load.errors)}, {load.overdue} overdue")
    for name in watched:
        first, last = memory[name][len(memory[name]) // 5][1], memory[name][-1][1]
        print(
            f"  {name}: {first:.1f} -> {last:.1f} MB ({slope(memory[name]):+.3f} MB/min), "
            f"{files[name][0][1]:.0f} -> {files[name][-1][1]:.0f} open files ({slope(files[name]):+.3f}/min)"
        )
    for name, load in loads.items():
        assert load.wrong == 0, name
        # If the test's own threads were not scheduled for a second, calls of 10 ms say nothing.
        assert load is hasty or load.overdue == 0, name
        # A deadline of 10 ms may pass before the client hears the broker for the first time.
        allowed = {"DEADLINE_EXCEEDED", "UNAVAILABLE"} if load is hasty else set()
        assert set(load.errors) <= allowed, (load.errors, load.examples)
    for name in watched:
        assert slope(memory[name]) < 0.5, f"{name} grows"
        assert abs(slope(files[name])) < 0.5, f"{name} opens files"
