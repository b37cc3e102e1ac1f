"""Real processes that are killed, stopped, drained, or sent wrong messages under load. No call is lost or hangs."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest

from tests.support.hostile import SESSION, TO_BACKEND, TO_FRONTEND, FakePeer, MalformedSender
from tests.support.mutation import mutate
from tests.support.processes import (
    Fabric,
    Process,
    eventually,
    faulty_workers,
    is_running,
    running_broker,
    running_workers,
    status,
    wait_for_workers,
    worker_pids,
)
from tests.support.traffic import Traffic, traffic
from zmq_offload import Client
from zmq_offload.errors import Aborted, DeadlineExceeded, OffloadError, Unavailable
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_tensors

QUICK = ("--heartbeat", "0.3", "--patience", "1")
"""Options for tests that wait until a silent peer is noticed."""
IMPATIENT = (*QUICK, "--drain", "1")
"""Options of workers that do not wait long for a killed broker."""
X = np.arange(100.0)


@contextmanager
def fabric(*options: str, workers: int = 2, slots: int = 4) -> Iterator[tuple[Fabric, Process]]:
    """A broker and workers that misbehave on request."""
    with (
        running_broker(*QUICK, *options) as broker,
        faulty_workers(broker.backend, "--processes", str(workers), *IMPATIENT, slots=slots) as supervisor,
    ):
        wait_for_workers(broker.frontend, workers)
        yield broker, supervisor


@contextmanager
def two_brokers(workers: int = 2) -> Iterator[tuple[Fabric, Fabric]]:
    """Two brokers, and workers that serve both."""
    with (
        running_broker(*QUICK) as one,
        running_broker(*QUICK) as two,
        faulty_workers(f"{one.backend},{two.backend}", "--processes", str(workers), *IMPATIENT),
    ):
        wait_for_workers(one.frontend, workers)
        wait_for_workers(two.frontend, workers)
        yield one, two


def served_more(load: Traffic, many: int) -> None:
    before = load.served
    eventually(lambda: load.served >= before + many)


def assert_all_served(load: Traffic) -> None:
    assert not load.errors, (str(load), load.examples)
    assert load.wrong == load.overdue == 0, str(load)
    assert load.served > 0


# --- workers that die, stop, hang ---------------------------------------------------------------------------


def test_a_killed_workers_requests_are_served_by_others() -> None:
    with fabric(workers=3) as (broker, _), traffic(broker.frontend) as load:
        for _ in range(3):
            served_more(load, 200)
            os.kill(random.choice(wait_for_workers(broker.frontend, 3)), signal.SIGKILL)
        served_more(load, 200)
    assert_all_served(load)


def test_a_stopped_workers_requests_are_served_by_others_until_it_goes_on() -> None:
    with fabric(workers=2) as (broker, _), traffic(broker.frontend, extra={"sleep": np.array(0.02)}) as load:
        served_more(load, 20)
        for _ in range(2):
            victim = random.choice(wait_for_workers(broker.frontend, 2))
            os.kill(victim, signal.SIGSTOP)
            try:
                eventually(lambda victim=victim: victim not in worker_pids(broker.frontend))
                served_more(load, 20)
            finally:
                os.kill(victim, signal.SIGCONT)
            assert victim in wait_for_workers(broker.frontend, 2), "it is back, the same process"
            served_more(load, 20)
    assert_all_served(load)


def test_a_worker_that_hangs_in_its_executor_is_restarted() -> None:
    with (
        running_broker(*QUICK) as broker,
        faulty_workers(broker.backend, "--hang-grace", "0.5", *IMPATIENT) as supervisor,
        Client(broker.frontend) as client,
    ):
        (first,) = wait_for_workers(broker.frontend, 1)
        with pytest.raises(DeadlineExceeded):
            client.infer("echo", {"hang": X}, timeout=0.5)
        supervisor.wait_for("a subgraph hangs; ending this worker")
        np.testing.assert_array_equal(client.infer("echo", {"x": X}, timeout=20)["x"], X)
        assert worker_pids(broker.frontend) != [first]


def test_a_worker_that_computes_for_many_heartbeats_stays_alive() -> None:
    with fabric(workers=1) as (broker, _), Client(broker.frontend) as client:
        before = worker_pids(broker.frontend)
        client.infer("echo", {"sleep": np.array(3.0)}, timeout=10)
        assert worker_pids(broker.frontend) == before
        assert status(broker.frontend)["lost_workers"] == 0


def test_a_worker_that_computes_for_one_broker_stays_known_to_the_other() -> None:
    with two_brokers(workers=1) as (one, two), Client(one.frontend) as client, Client(two.frontend) as other:
        long = client.submit("echo", {"sleep": np.array(4.0)}, timeout=10)
        eventually(lambda: status(two.frontend)["workers"][0]["silent"] > 1.5)
        # It queues there instead of being refused: the worker is busy, not lost.
        np.testing.assert_array_equal(other.infer("echo", {"x": X}, timeout=10)["x"], X)
        long.result()
        assert status(two.frontend)["lost_workers"] == 0


def test_a_request_that_kills_its_workers_is_given_up_and_the_others_served() -> None:
    with fabric(workers=3) as (broker, supervisor), traffic(broker.frontend, clients=2) as load:
        served_more(load, 100)
        with Client(broker.frontend) as client, pytest.raises(Aborted, match="lost its worker 3 times"):
            client.infer("echo", {"kill": X}, timeout=20)
        assert sum("ended with code -9" in line for line in supervisor.seen()) <= 3
        wait_for_workers(broker.frontend, 3)
        served_more(load, 100)
    assert_all_served(load)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_that_kills_the_only_worker_is_given_up_and_the_others_are_served(workers: int) -> None:
    with (
        fabric("--restart-grace", "60", workers=workers) as (broker, supervisor),
        traffic(broker.frontend, clients=2, timeout=60) as load,
    ):
        served_more(load, 50)
        with Client(broker.frontend) as client, pytest.raises(Aborted, match="lost its worker 3 times"):
            client.infer("echo", {"kill": X}, timeout=60)
        assert sum("ended with code -9" in line for line in supervisor.seen()) <= 3
        served_more(load, 50)
        broker.broker.wait_for("WARNING .*is ABORTED: it lost its worker 3 times")
    assert_all_served(load)


def test_a_reply_does_not_wait_for_the_next_run() -> None:
    with fabric(workers=1, slots=4) as (broker, _), Client(broker.frontend) as client:
        held = client.submit("echo", {"sleep": np.array(0.3)})  # so that both others are at the worker when it ends
        quick, slow = client.submit("echo", {"x": X}), client.submit("echo", {"sleep": np.array(3.0)})
        held.result(10)
        quick.result(2)
        assert not slow.done()
        slow.cancel()


# --- supervisors --------------------------------------------------------------------------------------------


def test_a_worker_that_dies_again_and_again_is_started_with_growing_delays() -> None:
    with running_workers("tcp://127.0.0.1:9", "--executor", "echo") as supervisor:
        delays = []
        for count in range(4):
            pid = int(supervisor.wait_for(r"worker 0 is process (\d+)", count)[1])
            eventually(lambda pid=pid: is_running(pid))
            os.kill(pid, signal.SIGKILL)
            delays.append(float(supervisor.wait_for(r"starting another in (\S+) s", count)[1]))
        assert delays == sorted(delays)
        assert delays[0] == 0
        assert delays[-1] >= 0.2
        # Between two starts there are no messages; a stop must work nevertheless.
        assert supervisor.end() == 0


def test_workers_end_when_their_supervisor_is_killed() -> None:
    with fabric(workers=2) as (broker, supervisor):
        pids = worker_pids(broker.frontend)
        supervisor.end(signal.SIGKILL)
        eventually(lambda: not any(map(is_running, pids)))
        eventually(lambda: not worker_pids(broker.frontend))


# --- drains -------------------------------------------------------------------------------------------------


def test_workers_that_are_told_to_stop_under_load_lose_nothing() -> None:
    with (
        running_broker(*QUICK) as broker,
        faulty_workers(broker.backend, "--processes", "2", *IMPATIENT),
        faulty_workers(broker.backend, "--processes", "2", *IMPATIENT) as going,
    ):
        wait_for_workers(broker.frontend, 4)
        with traffic(broker.frontend, clients=4, depth=8) as load:
            served_more(load, 200)
            assert going.end(signal.SIGTERM) == 0
            served_more(load, 200)
        assert_all_served(load)
        now = status(broker.frontend)
        assert now["requests"]["retried"] == now["lost_workers"] == 0


def test_a_stopping_broker_finishes_its_requests_and_refuses_new_ones() -> None:
    with fabric() as (broker, _), traffic(broker.frontend, extra={"sleep": np.array(0.02)}, timeout=2) as load:
        served_more(load, 50)
        assert broker.broker.end(signal.SIGTERM) == 0
        load.stop()
    assert set(load.errors) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}, str(load)
    assert load.wrong == load.overdue == 0


def test_clients_of_two_brokers_survive_the_stop_of_one() -> None:
    with two_brokers() as (one, two), traffic([one.frontend, two.frontend]) as load:
        served_more(load, 100)
        assert one.broker.end(signal.SIGTERM) == 0
        served_more(load, 100)
    assert_all_served(load)


# --- brokers that die ---------------------------------------------------------------------------------------


def test_a_killed_and_restarted_broker_serves_all_outstanding_requests() -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker(*QUICK))
        stack.enter_context(faulty_workers(broker.backend, "--processes", "2", *IMPATIENT))
        wait_for_workers(broker.frontend, 2)
        load = stack.enter_context(traffic(broker.frontend))
        for _ in range(2):
            served_more(load, 100)
            broker.broker.end(signal.SIGKILL)
            broker = stack.enter_context(running_broker(*QUICK, frontend=broker.frontend, backend=broker.backend))
        served_more(load, 100)
        load.stop()
    assert_all_served(load)


def test_clients_go_to_the_second_broker_when_the_first_is_killed() -> None:
    with two_brokers() as (one, two), traffic([one.frontend, two.frontend]) as load:
        served_more(load, 100)
        one.broker.end(signal.SIGKILL)
        served_more(load, 100)
    assert_all_served(load)


def test_without_a_broker_the_error_is_typed_and_in_time() -> None:
    with Client("tcp://127.0.0.1:9") as client:
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no broker answered"):
            client.infer("echo", {"x": X}, timeout=0.5)
        assert time.monotonic() - started < 2


# --- wrong messages -----------------------------------------------------------------------------------------


def test_garbage_on_both_sockets_does_no_harm() -> None:
    with fabric() as (broker, _), traffic(broker.frontend) as load:
        served_more(load, 50)
        senders = [
            MalformedSender(broker.frontend, TO_FRONTEND, 1, 5000),
            MalformedSender(broker.backend, TO_BACKEND, 2, 5000),
        ]
        for sender in senders:
            sender.join(60)
            assert not sender.is_alive()
        served_more(load, 100)
        now = status(broker.frontend)
        assert now["dropped"]["malformed"] > 1000
        assert now["requests"]["retried"] == 0
    assert_all_served(load)
    assert broker.broker.popen.returncode is not None


@pytest.fixture
def fake() -> Iterator[FakePeer]:
    fake = FakePeer()
    yield fake
    fake.close()


def test_a_client_survives_whatever_a_broker_sends(fake: FakePeer) -> None:
    chance = random.Random(3)
    with Client(fake.endpoint) as client:
        for count in range(20):
            future = client.submit("echo", {"x": X}, timeout=10)
            request = None
            # An invented Pong may have caused the previous request to be sent again.
            while not (isinstance(request, wire.Request) and request.id == count + 1):
                peer, envelope, *payload = fake.receive()
                request = wire.decode(envelope, wire.FROM_CLIENT)
            result = [wire.encode(wire.Result(request.session, request.id, 1, 0, 0, 0)), *payload]
            valid = [result, [wire.encode(wire.Pong(request.session, [request.id]))], [*result[:1], b"\x90"]]
            for _ in range(50):
                fake.socket.send_multipart([peer, *mutate(chance.choice(valid), chance)])
            # An Answer to a request is the wrong kind of reply. It once killed the thread that drives.
            fake.socket.send_multipart(
                [peer, wire.encode(wire.Answer(request.session, request.id)), msgpack.packb(count)]
            )
            fake.socket.send_multipart([peer, *result])
            error = future.exception(10)
            assert error is None or isinstance(error, OffloadError), error


def test_a_worker_survives_whatever_a_broker_sends(fake: FakePeer) -> None:
    chance = random.Random(4)
    frames = list(map(bytes, encode_tensors({"x": X})))

    def dispatch(number: int) -> list[bytes]:
        return [wire.encode(wire.Dispatch(SESSION, number, 1, "echo", 1, 10**7)), *frames]

    with running_workers(fake.endpoint, "--executor", "echo", "--drain", "1") as supervisor:
        peer, envelope, _ = fake.receive(20)
        assert isinstance(wire.decode(envelope, wire.FROM_WORKER), wire.Announce)
        valid: list[list[Any]] = [
            dispatch(7),
            [wire.encode(wire.Revoke(SESSION, 7, 1))],
            [wire.encode(wire.Identify())],
        ]
        for _ in range(3000):
            fake.socket.send_multipart([peer, *mutate(chance.choice(valid), chance)])
        fake.socket.send_multipart([peer, *dispatch(10**6)])

        message = None
        while not (isinstance(message, wire.Done) and message.id == 10**6):
            message = wire.decode(fake.receive()[1], wire.FROM_WORKER)
        assert not any("ended with code" in line for line in supervisor.seen())


def test_a_broker_that_lies_fills_neither_a_workers_log_nor_its_memory(fake: FakePeer) -> None:
    frames = list(map(bytes, encode_tensors({"sleep": np.array(0.05)})))
    with faulty_workers(fake.endpoint, "--drain", "1", slots=2) as supervisor:
        peer, envelope, _ = fake.receive(20)
        assert isinstance(wire.decode(envelope, wire.FROM_WORKER), wire.Announce)
        before = len(supervisor.seen())
        for _ in range(1000):
            fake.socket.send_multipart([peer, wire.encode(wire.Error(SESSION, 0, "INTERNAL", "a\nb"))])
        for number in range(200):
            dispatch = wire.Dispatch(SESSION, number, 1, "echo", 1, 10**8)
            fake.socket.send_multipart([peer, wire.encode(dispatch), *frames])
        refused = [wire.decode(fake.receive(20)[1], wire.FROM_WORKER) for _ in range(120)]
        codes = [message.code for message in refused if isinstance(message, wire.Failed)]
        assert codes.count("RESOURCE_EXHAUSTED") > 100
        said = supervisor.seen()[before:]
        assert len(said) < 10 and any("says INTERNAL: a\\nb" in line for line in said), said
