"""Real processes are killed, stopped and drained under load, for minutes. `pytest -m chaos -s tests/chaos` prints the
figures of docs/reliability.md."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

from tests.support.processes import (
    Fabric,
    Process,
    eventually,
    faulty_workers,
    running,
    running_broker,
    status,
    wait_for_workers,
    worker_pids,
)
from tests.support.traffic import Traffic, traffic
from zmq_offload import Client
from zmq_offload.errors import Aborted, OffloadError

pytestmark = pytest.mark.chaos

X = np.arange(100.0)


@contextmanager
def fabric(*options: str, workers: int = 4, slots: int = 4) -> Iterator[tuple[Fabric, Process]]:
    with (
        running_broker(*options) as broker,
        faulty_workers(broker.backend, "--processes", str(workers), "--drain", "2", slots=slots) as supervisor,
    ):
        wait_for_workers(broker.frontend, workers)
        yield broker, supervisor


@contextmanager
def two_brokers(workers: int = 4) -> Iterator[tuple[Fabric, Fabric]]:
    with (
        running_broker() as one,
        running_broker() as two,
        faulty_workers(f"{one.backend},{two.backend}", "--processes", str(workers), "--drain", "2", slots=4),
    ):
        wait_for_workers(one.frontend, workers)
        wait_for_workers(two.frontend, workers)
        yield one, two


def report(title: str, load: Traffic, **more: Any) -> None:
    print(f"\n{title}: {load}" + "".join(f", {name.replace('_', ' ')} {value}" for name, value in more.items()))


def assert_every_answer_right(load: Traffic, *allowed: str) -> None:
    assert load.wrong == load.overdue == 0, str(load)
    assert set(load.errors) <= set(allowed), (str(load), load.examples)
    assert load.served > 0


def assert_each_ended_once(frontend: str) -> None:
    requests = status(frontend)["requests"]
    ended = requests["served"] + sum(requests["failed"].values())
    assert requests["accepted"] == ended + requests["outstanding"]


def test_a_worker_is_killed_every_half_second_for_a_minute() -> None:
    chance = random.Random(1)
    with fabric() as (broker, _):
        with traffic(broker.frontend, clients=8, depth=8, extra={"sleep": np.array(0.002)}) as load:
            kills, end = 0, time.monotonic() + 60
            while time.monotonic() < end:
                if pids := worker_pids(broker.frontend):
                    with contextlib.suppress(ProcessLookupError):  # the broker may not have noticed the last kill yet
                        os.kill(chance.choice(pids), signal.SIGKILL)
                        kills += 1
                time.sleep(0.5)  # the test is about this rate
        requests = status(broker.frontend)["requests"]
        report("a worker killed every 0.5 s", load, kills=kills, retried=requests["retried"])
        assert_every_answer_right(load, "ABORTED")
        assert all("lost its worker 3 times" in text for text in load.examples.values())
        assert_each_ended_once(broker.frontend)


def test_the_broker_is_killed_and_restarted_three_times() -> None:
    back = []
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker())
        stack.enter_context(faulty_workers(broker.backend, "--processes", "4", "--drain", "2", slots=4))
        wait_for_workers(broker.frontend, 4)
        load = stack.enter_context(traffic(broker.frontend, clients=8, depth=8))
        for _ in range(3):
            before = load.served
            eventually(lambda before=before: load.served > before + 2000)
            broker.broker.end(signal.SIGKILL)
            broker = stack.enter_context(running_broker(frontend=broker.frontend, backend=broker.backend))
            up = time.monotonic()
            wait_for_workers(broker.frontend, 4)
            back.append(time.monotonic() - up)
        before = load.served
        eventually(lambda: load.served > before + 2000)
        load.stop()
    report("broker killed three times", load, workers_back_after=", ".join(f"{s:.2f} s" for s in back))
    assert_every_answer_right(load)
    assert max(back) < 2


def test_one_of_two_brokers_is_killed() -> None:
    with two_brokers() as (one, two), traffic([one.frontend, two.frontend], clients=8, depth=8) as load:
        eventually(lambda: load.served > 2000)
        one.broker.end(signal.SIGKILL)
        killed = time.monotonic()
        before = load.served
        eventually(lambda: load.served > before + 2000)
        load.stop()
        first = min(at for at, _ in load.latencies if at > killed + 0.1) - killed
        report("one of two brokers killed", load, served_again_after=f"{first:.2f} s")
    assert_every_answer_right(load)
    assert load.longest_gap() < 2, "clients fail over within 2 s"


def test_a_broker_process_of_three_is_killed_every_two_seconds() -> None:
    chance = random.Random(2)
    listen = ["--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0", "--processes", "3"]
    with running("-m", "broker", *listen) as brokers:
        ready = brokers.wait_for(r"^ready frontend=(\S+) backend=(\S+)$")
        frontends = ready[1].split(",")
        with faulty_workers(ready[2], "--processes", "4", "--drain", "2", slots=4):
            for frontend in frontends:
                wait_for_workers(frontend, 4)
            with traffic(frontends, clients=8, depth=8, spread=True) as load:
                kills, end = 0, time.monotonic() + 30
                while time.monotonic() < end:
                    time.sleep(2)  # the test is about this rate
                    found = [re.search(r"broker (\d) is process (\d+)", line) for line in brokers.seen()]
                    pids = {match[1]: int(match[2]) for match in found if match}
                    os.kill(chance.choice(sorted(pids.values())), signal.SIGKILL)
                    kills += 1
                before = load.served
                eventually(lambda: load.served > before + 1000)
            for frontend in frontends:
                wait_for_workers(frontend, 4)
            restarts = sum(status(frontend)["restarts"] for frontend in frontends)
        assert brokers.end() == 0
    report("a broker process of 3 killed every 2 s", load, kills=kills)
    assert restarts == kills
    assert_every_answer_right(load)


def test_both_of_two_brokers_use_the_same_workers() -> None:
    with two_brokers() as (one, two), traffic(one.frontend) as first, traffic(two.frontend) as second:
        eventually(lambda: first.served > 1000 and second.served > 1000)
    report("first of two brokers", first)
    report("second of two brokers", second)
    assert_every_answer_right(first)
    assert_every_answer_right(second)


def test_a_stopped_workers_requests_go_to_others() -> None:
    with fabric() as (broker, _), traffic(broker.frontend, extra={"sleep": np.array(0.002)}) as load:
        eventually(lambda: load.served > 500)
        victim = worker_pids(broker.frontend)[0]
        os.kill(victim, signal.SIGSTOP)
        stopped = time.monotonic()
        eventually(lambda: victim not in worker_pids(broker.frontend))
        noticed = time.monotonic() - stopped
        os.kill(victim, signal.SIGCONT)
        eventually(lambda: victim in worker_pids(broker.frontend))
        # Its old answers are late, or lost with the old connection if it first sees that its broker was silent.
        late = status(broker.frontend)["dropped"]["late"]
        load.stop()
        report("a worker stopped and continued", load, noticed_after=f"{noticed:.2f} s", late_answers_dropped=late)
    assert_every_answer_right(load)


def test_a_subgraph_that_computes_for_30_s_keeps_its_worker() -> None:
    with fabric(workers=1) as (broker, _), Client(broker.frontend) as client:
        before = worker_pids(broker.frontend)
        started = time.monotonic()
        client.infer("echo", {"sleep": np.array(30.0)}, timeout=60)
        took = time.monotonic() - started
        now = status(broker.frontend)
        print(f"\n30 s of computing with heartbeats of 1 s: answered after {took:.2f} s, {now['lost_workers']} lost")
        assert worker_pids(broker.frontend) == before
        assert now["lost_workers"] == 0


def test_poison_takes_down_at_most_max_attempts_workers() -> None:
    with fabric() as (broker, supervisor), traffic(broker.frontend, clients=4, depth=8) as load:
        eventually(lambda: load.served > 500)
        with Client(broker.frontend) as client:
            for _ in range(5):
                deaths = _deaths(supervisor)
                with pytest.raises(Aborted, match="lost its worker 3 times"):
                    client.infer("echo", {"kill": X}, timeout=30)
                eventually(lambda: len(worker_pids(broker.frontend)) == 4)
                assert _deaths(supervisor) - deaths <= 3
        before = load.served
        eventually(lambda: load.served > before + 500)
        load.stop()
        report("five poison requests", load, workers_killed=_deaths(supervisor))
    assert_every_answer_right(load)


def _deaths(supervisor: Process) -> int:
    return sum("ended with code -9" in line for line in supervisor.seen())


def test_draining_workers_and_a_draining_broker() -> None:
    with (
        running_broker() as broker,
        faulty_workers(broker.backend, "--processes", "2", "--drain", "2", slots=4),
        faulty_workers(broker.backend, "--processes", "2", slots=4) as going,
    ):
        wait_for_workers(broker.frontend, 4)
        with traffic(broker.frontend, clients=8, depth=8, timeout=5) as load:
            eventually(lambda: load.served > 1000)
            assert going.end(signal.SIGTERM) == 0
            before = load.served
            eventually(lambda: load.served > before + 1000)
            assert_every_answer_right(load)
            now = status(broker.frontend)
            assert now["requests"]["retried"] == now["lost_workers"] == 0
            accepted_before = load.ended
            assert broker.broker.end(signal.SIGTERM) == 0
            load.stop()
        report("drains of workers and broker", load, ended_before_the_brokers_stop=accepted_before)
        # Requests after the stop were refused, or found no broker.
        assert_every_answer_right(load, "UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_deadlines_and_canceling() -> None:
    with fabric(workers=1, slots=1) as (broker, _), Client(broker.frontend) as client:
        late = []
        for _ in range(20):
            busy = client.submit("echo", {"sleep": np.array(0.3)}, timeout=5)
            futures = [(client.submit("echo", {"x": X}, timeout=0.1), time.monotonic()) for _ in range(10)]
            taken_back = [client.submit("echo", {"x": X}, timeout=5) for _ in range(10)]
            assert all(future.cancel() for future in taken_back)
            for future, started in futures:
                error = future.exception(5)
                assert isinstance(error, OffloadError) and error.code.value == "DEADLINE_EXCEEDED"
                late.append(time.monotonic() - started - 0.1)
            busy.result()
        now = status(broker.frontend)
        served = now["workers"][0]["served"]
        print(f"\n200 requests expired, 200 were canceled: {served - 20} ran; latest {max(late) * 1e3:.0f} ms late")
        assert served == 20, "only what was not expired or canceled ran"
