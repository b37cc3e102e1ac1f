"""Clients that flood and clients that never read: the broker's memory, and the effect on other clients."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import zmq

from tests.support.memory import MB, MemoryWatch
from tests.support.processes import Fabric, faulty_workers, running, running_broker, wait_for_workers
from tests.support.traffic import traffic
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_tensors

pytestmark = pytest.mark.chaos

BOUND = 64 * MB
"""--max-queued-bytes."""


@contextmanager
def watched() -> Iterator[tuple[Fabric, MemoryWatch]]:
    with (
        running_broker("--max-queued-bytes", str(BOUND)) as broker,
        faulty_workers(broker.backend, "--processes", "2", "--drain", "2", slots=2),
    ):
        wait_for_workers(broker.frontend, 2)
        memory = MemoryWatch(broker.broker.popen.pid)
        try:
            yield broker, memory
        finally:
            memory.stop()


def test_a_client_that_floods_harms_itself_only() -> None:
    polite = {"clients": 1, "depth": 1, "elements": 4800, "extra": {"sleep": np.array(0.005)}}
    with watched() as (broker, memory):
        with traffic(broker.frontend, **polite) as alone:
            time.sleep(5)
        # In another process, so that the test measures the fabric and not Python's GIL.
        with (
            traffic(broker.frontend, **polite) as during,
            running("-m", "tests.chaos.flood", broker.frontend, "100000") as flood,
        ):
            codes = json.loads(flood.wait_for("flooded (.*)", timeout=120)[1])
        print(f"\n100,000 requests of 38,400 bytes at once: {codes}; the broker's memory: {memory}")
        print(f"a well-behaved client alone: {alone}\nduring the flood: {during}")
        waits = [f"{during.percentile(share, queued=True) * 1e3:.1f} ms" for share in (0.5, 0.99)]
        print(f"in the broker's queue it waited {waits[0]} (p50), {waits[1]} (p99)")
        print(f"its p99 during the flood is {during.percentile(0.99) / alone.percentile(0.99):.2f} times that alone")
    assert set(codes) <= {"served", "RESOURCE_EXHAUSTED"}
    assert not during.errors and not during.wrong, str(during)
    assert memory.peak - memory.first < 3 * BOUND


def test_a_client_that_never_reads_costs_a_bounded_amount() -> None:
    context = zmq.Context()
    with watched() as (broker, memory), context.socket(zmq.DEALER) as deaf:
        deaf.linger = 0
        deaf.rcvhwm, deaf.sndhwm, deaf.rcvbuf = 1, 100, 4096
        deaf.connect(broker.frontend)
        payload = encode_tensors({"x": np.zeros(4800)})
        with traffic(broker.frontend, clients=2) as load:
            sent, end = 0, time.monotonic() + 20
            while time.monotonic() < end:
                if deaf.poll(100, zmq.POLLOUT):
                    envelope = wire.encode(wire.Request(b"d" * 16, sent + 1, "echo", 0, 10_000_000, 0))
                    deaf.send_multipart([envelope, *payload])
                    sent += 1
        print(f"\n{sent} requests of a client that never reads; the broker's memory: {memory}\nbeside it: {load}")
        assert not load.errors and not load.wrong, str(load)
        assert memory.peak - memory.first < 3 * BOUND
    context.term()
