"""Measures what a request costs apart from computing and the network, with a broker and an echo worker here."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from zmq_offload.client.sync import Client
from zmq_offload.plan.costs import Handling, Overhead
from zmq_offload.plan.turns import interval
from zmq_offload.testing.fabric import start_fabric
from zmq_offload.testing.processes import Children, Interrupts

_LARGE = 1_000_000
_CALLS = {1: 100, _LARGE: 30}
"""The number of requests by their size in floats."""

_WAIT = 0.004
"""Seconds between two requests. A device computes before each request, and processes are asleep when it comes."""


def measure_overhead() -> Overhead:
    """Seconds per request, and per byte of request and reply. Raises Internal if broker or worker do not start."""
    with (
        Interrupts() as interrupts,
        Children(interrupts) as children,
        tempfile.TemporaryDirectory() as logs,
    ):
        endpoint = start_fabric(children, Path(logs), 1, Path(logs), ("--executor", "echo"))
        # A device is on another host and shares no memory with the broker.
        with Client(endpoint, arena_bytes=0) as client:
            latency = _of_both({size: _median(client, size, calls) for size, calls in _CALLS.items()})
            busy = {size: _pipelined(client, size, calls) for size, calls in _CALLS.items()}
    here = _of_both({size: used for size, (used, _) in busy.items()})
    worker = _of_both({size: turn for size, (_, turn) in busy.items()})
    return Overhead(latency.request, latency.byte, here, worker)


def _of_both(times: dict[int, float]) -> Handling:
    byte = max(0.0, (times[_LARGE] - times[1]) / (2 * 4 * _LARGE))
    return Handling(times[1], byte)


def _pipelined(client: Client, size: int, calls: int) -> tuple[float, float]:
    """The processor time of this process, and the time between two replies, for each of many requests in flight."""
    inputs = {"x": np.zeros(size, np.float32)}
    start = time.process_time()
    turn = interval(client, "echo", inputs, calls, 3.0)
    return (time.process_time() - start) / calls, turn


def _median(client: Client, size: int, calls: int) -> float:
    x = np.zeros(size, np.float32)
    times = []
    for _ in range(calls):
        time.sleep(_WAIT)
        start = time.perf_counter()
        client.infer("echo", {"x": x})
        times.append(time.perf_counter() - start)
    return statistics.median(times[calls // 4 :])
