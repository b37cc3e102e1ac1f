"""Measures what a request costs apart from computing and the network, with a broker and an echo worker here."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from zmq_offload.client.sync import Client
from zmq_offload.plan.costs import Overhead
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
        with Client(endpoint) as client:
            times = {size: _median(client, size, calls) for size, calls in _CALLS.items()}
    byte = max(0.0, (times[_LARGE] - times[1]) / (2 * 4 * _LARGE))
    return Overhead(times[1], byte)


def _median(client: Client, size: int, calls: int) -> float:
    x = np.zeros(size, np.float32)
    times = []
    for _ in range(calls):
        time.sleep(_WAIT)
        start = time.perf_counter()
        client.infer("echo", {"x": x})
        times.append(time.perf_counter() - start)
    return statistics.median(times[calls // 4 :])
