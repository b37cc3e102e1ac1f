"""Processes that pass tensors through shared memory are killed under load, and all memory comes back."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.arenas import used_cells
from tests.support.gateway_traffic import GrpcCaller, HttpCaller, Traffic, traffic
from tests.support.processes import (
    Gateway,
    eventually,
    faulty_workers,
    running_broker,
    running_gateway,
    wait_for_workers,
    worker_pids,
)
from zmq_offload.net.sharedmemory import segment

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not segment.SUPPORTED, reason="this system has no memory to share"),
]

ELEMENTS = 50_000
"""400 KB in FP64."""

LATE_OR_LOST = {"503", "504", "409", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"}


def callers(gateway: Gateway, each: int) -> list[Callable[[], Any]]:
    kinds = [(HttpCaller, gateway.http), (GrpcCaller, gateway.grpc)]
    return [functools.partial(kind, address) for kind, address in kinds for _ in range(each)]


def serve_more(load: Traffic, count: int) -> None:
    before = load.total
    eventually(lambda: load.total > before + count, timeout=60)


@pytest.mark.parametrize("arena", ["268435456", "1000000"], ids=["room", "no-room"])
def test_workers_brokers_and_a_gateway_are_killed(arena: str) -> None:
    chance = random.Random(1)
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker())
        options = ("--processes", "3", "--drain", "2", "--arena-bytes", arena)
        workers = stack.enter_context(faulty_workers(broker.backend, *options, slots=4))
        wait_for_workers(broker.frontend, 3)
        gateways = [
            stack.enter_context(running_gateway(broker.frontend, options=["--arena-bytes", arena])) for _ in range(2)
        ]
        kept = stack.enter_context(traffic(callers(gateways[0], 3), elements=ELEMENTS))
        short = stack.enter_context(traffic(callers(gateways[0], 2), timeout=0.02, elements=ELEMENTS))
        with traffic(callers(gateways[1], 2), elements=ELEMENTS) as theirs:
            serve_more(theirs, 50)
            gateways[1].process.end(signal.SIGKILL)
            serve_more(kept, 50)
        for turn in range(20):
            if pids := worker_pids(broker.frontend):
                with contextlib.suppress(ProcessLookupError):  # the broker may not have noticed the last kill yet
                    os.kill(chance.choice(pids), signal.SIGKILL)
            if turn % 10 == 5:
                broker.broker.end(signal.SIGKILL)
                broker = stack.enter_context(running_broker(frontend=broker.frontend, backend=broker.backend))
            time.sleep(0.5)  # the test is about this rate
        serve_more(kept, 100)
        kept.stop()
        short.stop()
        print(f"\n{kept}\nwith 20 ms: {short}")
        assert not kept.faults and not kept.refused and set(kept.errors) <= LATE_OR_LOST, str(kept)
        assert set(short.errors) <= LATE_OR_LOST, str(short)
        assert not any("wrong" in fault for fault in (*short.faults, *theirs.faults)), (short.faults, theirs.faults)
        processes = [gateways[0].process, broker.broker, workers]
        pids = [process.popen.pid for process in processes] + wait_for_workers(broker.frontend, 3)
        assert len(used_cells(pids)) >= 5
        # What was given and never fetched is taken back after `cells.TAKE_BACK`.
        eventually(lambda: not any(used_cells(pids).values()), timeout=60)
        eventually(lambda: len(used_cells(pids)) <= 5, timeout=60)  # the arenas of those that are there
