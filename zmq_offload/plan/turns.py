"""Measures how long an item occupies the device and the server when they work as they will: in processes of their own,
with messages between them.

A part that is called in a loop finds its data in the caches, and nobody receives, checks and answers messages.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zmq_offload.client.sync import Client
from zmq_offload.device.model import load
from zmq_offload.plan.slow import SlowedClient
from zmq_offload.plan.timing import thread_count
from zmq_offload.protocol.payload import Array
from zmq_offload.testing.fabric import start_fabric
from zmq_offload.testing.processes import Children, Interrupts

IN_FLIGHT = 4
"""Requests in flight, so that a worker always has the next one."""

_SECONDS = 3.0
"""How long each measurement may take. There are at least four items."""


class Turns(NamedTuple):
    """Seconds that both parts of an item occupy the device; that a worker computes it; and that it occupies the worker,
    with its messages, when another item follows."""

    device: float
    compute: float
    server: float


def measure_turns(
    folder: Path,
    name: str,
    arrays: Sequence[Array],
    sent: Mapping[str, Array],
    threads: tuple[int, int],
    slowdown: float,
    repeat: int,
) -> Turns:
    """The medians of `repeat` items of what `compile_model` wrote to a folder.

    `arrays` are the inputs of the model, `sent` is what the device sends of them. Raises Internal if broker or worker
    do not start.
    """
    device, server = threads
    with (
        Interrupts() as interrupts,
        Children(interrupts) as children,
        tempfile.TemporaryDirectory() as logs,
    ):
        options = ("--threads", str(server))
        endpoint = start_fabric(children, folder / "repository", 1, Path(logs), options)
        with Client(endpoint, arena_bytes=0) as client:
            slow = SlowedClient(client, slowdown)
            with load(folder / "device", client=slow) as model, thread_count(device, max(threads)):
                end = time.perf_counter() + _SECONDS
                while len(slow.seen) < repeat + 2 and (len(slow.seen) < 6 or time.perf_counter() < end):
                    model(*arrays)
            # The first stages are of a new thread, and with cold caches.
            stage = statistics.median(seen.ended - seen.began for seen in slow.seen[2:])
            compute = statistics.median(seen.timings.compute for seen in slow.seen[2:])
            return Turns(stage, compute, interval(client, name, sent, repeat, _SECONDS))


def interval(client: Client, name: str, inputs: Mapping[str, Array], repeat: int, seconds: float) -> float:
    """The time between two replies of a worker that always has another request."""
    futures = deque(client.submit(name, inputs) for _ in range(IN_FLIGHT))
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < 4 + repeat and (len(taken) < 8 or taken[-1] - start < seconds):
        futures.popleft().result()
        taken.append(time.perf_counter())
        futures.append(client.submit(name, inputs))
    for future in futures:
        future.result()
    return (taken[-1] - taken[3]) / (len(taken) - 4)
