"""Each of client, broker and worker is killed amid calls with large tensors, for each kind of client. Others go on, and
nothing is left: no name, no open or mapped memory, and the broker's count of it is what it was."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.arenas import mapped_arenas, used_cells
from tests.support.gateway_traffic import GrpcCaller, HttpCaller, Traffic, traffic
from tests.support.processes import (
    Fabric,
    Process,
    eventually,
    faulty_workers,
    running,
    running_broker,
    running_gateway,
    wait_for_workers,
)
from zmq_offload import Client
from zmq_offload.net.sharedmemory import segment

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not segment.SUPPORTED, reason="this system has no memory to share"),
]

ARENA = str(64 << 20)

ELEMENTS = 131_072
"""1 MB in FP64."""

LOST = {"UNAVAILABLE", "ABORTED", "503", "409"}
"""How calls may end whose worker or broker was killed: after the outputs were made, or three times."""

_SYNC = """
import os, sys, threading
import numpy as np
from zmq_offload import Client
from zmq_offload.errors import OffloadError

def say(word):
    os.write(1, (word + "\\n").encode())  # in one piece

def load(client, number):
    x = np.random.default_rng(number).random(131_072)
    while True:
        try:
            y = client.infer("echo", {"x": x}, timeout=30)["x"]
            say("served" if np.array_equal(x, y) else "wrong")
        except OffloadError as error:
            say(error.code.value)
        x += 1

with Client(sys.argv[1]) as client:
    threads = [threading.Thread(target=load, args=(client, number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""

_ASYNC = """
import asyncio, os, sys
import numpy as np
from zmq_offload import AsyncClient
from zmq_offload.errors import OffloadError

def say(word):
    os.write(1, (word + "\\n").encode())

async def load(client, number):
    x = np.random.default_rng(number).random(131_072)
    while True:
        try:
            y = (await client.infer("echo", {"x": x}, timeout=30))["x"]
            say("served" if np.array_equal(x, y) else "wrong")
        except OffloadError as error:
            say(error.code.value)
        x += 1

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        await asyncio.gather(*[load(client, number) for number in range(4)])

asyncio.run(main())
"""


class Calls:
    """A process that calls without end. `outcomes` counts what became of the calls, by word."""

    def __init__(self, process: Process, traffic: Traffic | None = None) -> None:
        self.process = process
        self._traffic = traffic

    @property
    def served(self) -> int:
        return self._traffic.total if self._traffic else self.process.seen().count("served")

    @property
    def others(self) -> set[str]:
        """How calls ended that were not served."""
        if self._traffic:
            return {*self._traffic.errors, *self._traffic.faults}
        return {*self.process.seen()} - {"served"}

    def go_on(self) -> None:
        """Wait until more calls are served, of which none was under way before."""
        before = self.served
        eventually(lambda: self.served > before + 20, timeout=60)

    def end(self) -> None:
        if self._traffic:
            self._traffic.stop()
        self.process.end(signal.SIGKILL)


@contextmanager
def calls(kind: str, broker: Fabric) -> Iterator[Calls]:
    with ExitStack() as stack:
        if kind == "gateway":
            gateway = stack.enter_context(running_gateway(broker.frontend, options=["--arena-bytes", ARENA]))
            makers: list[Callable[[], Any]] = [lambda: HttpCaller(gateway.http), lambda: GrpcCaller(gateway.grpc)] * 2
            load = stack.enter_context(traffic(makers, elements=ELEMENTS))
            yield Calls(gateway.process, load)
        else:
            code = _SYNC if kind == "sync" else _ASYNC
            yield Calls(stack.enter_context(running("-c", code, broker.frontend, ZMQ_OFFLOAD_ARENA_BYTES=ARENA)))


def mapped_bytes(broker: Fabric) -> int:
    """What the broker counts."""
    with Client(broker.frontend, arena_bytes=0) as client:
        return int(client.status()["shared_memory"]["mapped_bytes"])


@pytest.mark.parametrize("kind", ["sync", "async", "gateway"])
def test_nothing_is_left_of_what_is_killed(kind: str) -> None:
    names = set(os.listdir("/dev/shm"))
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker())
        options = ("--processes", "2", "--drain", "2", "--arena-bytes", ARENA)
        stack.enter_context(faulty_workers(broker.backend, *options, slots=4))
        workers = wait_for_workers(broker.frontend, 2)
        before = eventually(lambda: (found := mapped_bytes(broker)) == 2 * int(ARENA) and found, timeout=30)

        other = stack.enter_context(calls(kind, broker))
        with calls(kind, broker) as victim:
            for each in (other, victim):
                each.go_on()
            pid = victim.process.popen.pid
            eventually(lambda: any(used_cells([pid]).values()))  # amid calls
            victim.process.end(signal.SIGKILL)
            other.go_on()
        os.kill(workers[0], signal.SIGKILL)
        other.go_on()
        broker.broker.end(signal.SIGKILL)
        broker = stack.enter_context(running_broker(frontend=broker.frontend, backend=broker.backend))
        other.go_on()
        workers = wait_for_workers(broker.frontend, 2)

        # While the survivor goes on, only those that live have memory: it, the broker and two workers.
        left = [broker.broker.popen.pid, other.process.popen.pid, *workers]
        eventually(lambda: len(set.union(*map(mapped_arenas, left))) <= 4, timeout=60)
        assert other.others <= LOST, other.others
        other.end()
        left.remove(other.process.popen.pid)
        eventually(lambda: len(set.union(*map(mapped_arenas, left))) <= 3, timeout=60)
        eventually(lambda: mapped_bytes(broker) == before, timeout=60)
        # What was given and never fetched is taken back after `cells.TAKE_BACK`.
        eventually(lambda: not any(used_cells(left).values()), timeout=60)
    assert set(os.listdir("/dev/shm")) <= names
    mapped = Path("/proc/self/maps").read_text()
    assert len(re.findall(rf"memfd:{segment.NAME}", mapped)) <= 4, "this process asked with clients that share"
