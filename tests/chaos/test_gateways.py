"""Brokers, workers and gateways end under HTTP and gRPC load: every call has an answer or a typed error."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.gateway_traffic import GrpcCaller, HttpCaller, StreamCaller, Traffic, traffic
from tests.support.processes import (
    Gateway,
    eventually,
    faulty_workers,
    running_broker,
    running_gateway,
    wait_for_workers,
    worker_pids,
)

pytestmark = pytest.mark.chaos

LATE_OR_LOST = {"503", "504", "409", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "an error in the stream"}
"""What a call may end with while broker and workers come and go."""


def callers(gateway: Gateway, each: int = 4) -> list[Callable[[], Any]]:
    kinds = [(HttpCaller, gateway.http), (GrpcCaller, gateway.grpc), (StreamCaller, gateway.grpc)]
    return [functools.partial(kind, address) for kind, address in kinds for _ in range(each)]


def assert_no_fault(load: Traffic, allowed: set[str]) -> None:
    print(f"\n{load}")
    assert not load.faults, str(load)
    assert set(load.errors) <= allowed, str(load)
    assert all(load.served[kind.__name__] for kind in (HttpCaller, GrpcCaller, StreamCaller)), str(load)


def serve_more(load: Traffic, count: int = 1000) -> None:
    before = load.total
    eventually(lambda: load.total > before + count, timeout=60)


def test_the_broker_is_killed_and_restarted_three_times() -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker())
        stack.enter_context(faulty_workers(broker.backend, "--processes", "2", "--drain", "2", slots=8))
        wait_for_workers(broker.frontend, 2)
        gateway = stack.enter_context(running_gateway(broker.frontend))
        load = stack.enter_context(traffic(callers(gateway)))
        for _ in range(3):
            serve_more(load)
            broker.broker.end(signal.SIGKILL)
            broker = stack.enter_context(running_broker(frontend=broker.frontend, backend=broker.backend))
        serve_more(load)
        load.stop()
        assert gateway.process.end() == 0
    assert not load.refused
    assert_no_fault(load, LATE_OR_LOST)


def test_one_of_two_brokers_is_killed() -> None:
    with ExitStack() as stack:
        one, two = stack.enter_context(running_broker()), stack.enter_context(running_broker())
        backends = f"{one.backend},{two.backend}"
        stack.enter_context(faulty_workers(backends, "--processes", "2", "--drain", "2", slots=8))
        for broker in (one, two):
            wait_for_workers(broker.frontend, 2)
        gateway = stack.enter_context(running_gateway(one.frontend, two.frontend, options=["--spread", "off"]))
        load = stack.enter_context(traffic(callers(gateway)))
        serve_more(load)
        one.broker.end(signal.SIGKILL)
        serve_more(load)
        load.stop()
    assert not load.refused
    assert_no_fault(load, LATE_OR_LOST)


def test_a_worker_is_killed_every_half_second() -> None:
    chance = random.Random(1)
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker())
        stack.enter_context(faulty_workers(broker.backend, "--processes", "4", "--drain", "2", slots=4))
        wait_for_workers(broker.frontend, 4)
        gateway = stack.enter_context(running_gateway(broker.frontend))
        load = stack.enter_context(traffic(callers(gateway)))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if pids := worker_pids(broker.frontend):
                with contextlib.suppress(ProcessLookupError):  # the broker may not have noticed the last kill yet
                    os.kill(chance.choice(pids), signal.SIGKILL)
            time.sleep(0.5)  # the test is about this rate
        load.stop()
    assert not load.refused
    assert_no_fault(load, LATE_OR_LOST)


def test_a_gateway_that_stops_drains() -> None:
    """No connection is reset: what was sent is answered, and only new connections are refused."""
    with running_broker() as broker, faulty_workers(broker.backend, "--processes", "2", slots=8):
        wait_for_workers(broker.frontend, 2)
        for _ in range(5):
            with running_gateway(broker.frontend) as gateway, traffic(callers(gateway, 8)) as load:
                serve_more(load, 300)
                assert gateway.process.end() == 0
                eventually(lambda load=load: load.refused > 24)
                load.stop()
                # A stream is a call that never ends by itself: the gateway ends it with its last answer.
                assert_no_fault(load, {"UNAVAILABLE", "the stream ended"})


def test_one_of_two_gateways_stops() -> None:
    """A client that knows both loses no call."""
    with running_broker() as broker, faulty_workers(broker.backend, "--processes", "2", slots=8):
        wait_for_workers(broker.frontend, 2)
        with running_gateway(broker.frontend) as one, running_gateway(broker.frontend) as two:
            addresses = itertools.cycle([one.http, two.http])
            over_http = [lambda: HttpCaller(next(addresses)) for _ in range(4)]
            over_grpc = [lambda: GrpcCaller(one.grpc, two.grpc) for _ in range(4)]
            with traffic([*over_http, *over_grpc]) as load:
                serve_more(load)
                assert one.process.end() == 0
                serve_more(load)
                load.stop()
    print(f"\n{load}")
    assert not load.faults and not load.errors, str(load)
