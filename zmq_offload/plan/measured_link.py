"""Measures the link to a broker: the round trip and the bandwidth of both ways, with requests that nothing computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from zmq_offload.client.sync import Client
from zmq_offload.errors import NotFound, OffloadError
from zmq_offload.plan.costs import Network

NOBODY = "zmq-offload.link"
"""A name that no model has. The broker answers a request for it at once, with a short error, which measures the way
there alone."""

ECHO = "echo"
"""The model of `zmq-offload worker --executor echo`, whose reply is as long as the request."""

_SMALLEST, _LARGEST = 4_000, 4_000_000
"""Bytes of a request that shows the bandwidth: as many as take long enough, beside a round trip."""

_LONG = 0.2
_TIMES = 5


def measure_link(broker: str | Sequence[str]) -> tuple[Network, bool]:
    """The link to a broker, and whether the way back was measured: only where a worker serves `echo`. Its bandwidth
    counts as that of the way there otherwise.

    Raises Unavailable or DeadlineExceeded if no broker answers.
    """
    # Shared memory would go around the network where broker and device are on one host.
    with Client(broker, arena_bytes=0) as client:
        there = _ask(client, NOBODY)
        there(4)  # connects
        rtt = _fastest(there, 4)
        size, took = _long_enough(there, rtt)
        up = max(took - rtt, 1e-6)
        back = _ask(client, ECHO)
        try:
            back(4)
        except OffloadError:
            return Network(8 * size / up, rtt), False
        down = max(_fastest(back, size) - _fastest(back, 4) - up, 1e-6)
        return Network(8 * size / up, rtt, 8 * size / down), True


def _ask(client: Client, model: str) -> Callable[[int], float]:
    """Asks a model with an input of so many bytes, and returns how long it took."""

    def ask(nbytes: int) -> float:
        x = np.zeros(nbytes // 4, np.float32)
        start = time.perf_counter()
        try:
            client.infer(model, {"x": x})
        except NotFound:
            if model != NOBODY:
                raise
        return time.perf_counter() - start

    return ask


def _fastest(ask: Callable[[int], float], nbytes: int) -> float:
    return min(ask(nbytes) for _ in range(_TIMES))


def _long_enough(ask: Callable[[int], float], rtt: float) -> tuple[int, float]:
    """A size whose request takes several round trips, and how long it takes."""
    size = _SMALLEST
    while (took := ask(size)) < _LONG + rtt and size < _LARGEST:
        size *= 4
    return size, min(took, *(ask(size) for _ in range(_TIMES - 1)))
