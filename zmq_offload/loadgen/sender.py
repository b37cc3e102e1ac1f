"""A process that sends requests at the levels that it is told, and reports each request that ended."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from zmq_offload.client.aio import AsyncClient
from zmq_offload.client.results import Outputs
from zmq_offload.client.sync import Client
from zmq_offload.errors import OffloadError
from zmq_offload.loadgen.inputs import difference
from zmq_offload.loadgen.levels import Level
from zmq_offload.loadgen.stats import record
from zmq_offload.protocol.payload import Array

MISMATCH = "MISMATCH"
"""The error code of an output that differs from the expected one."""

_REPORT = 0.1
"""Seconds between two reports of a process. It checks as often whether to stop."""

_AFTER_ERROR = 0.01
"""Seconds that a closed loop waits after an error: requests may be refused at once."""

_clock = time.monotonic  # one clock for all processes of the machine


@dataclass(frozen=True)
class SendPlan:
    """What every process sends at every level. `seed` is for the times of an open loop; each process has its own."""

    brokers: tuple[str, ...]
    model: str
    version: int | None
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array] | None
    timeout: float
    priority: int
    poisson: bool
    max_frame_bytes: int
    seed: int

    @property
    def call(self) -> dict[str, Any]:
        return {"version": self.version, "timeout": self.timeout, "priority": self.priority}


Taken: TypeAlias = "tuple[list[tuple[float, ...]], list[tuple[str, str]], int, float]"


@dataclass
class Tally:
    """Requests that ended since the last report.

    `sent` and `late` are of an open loop: requests begun since the last report, and the seconds by which the next one
    is late. Futures end in another thread; appending to a list is atomic.
    """

    plan: SendPlan
    records: list[tuple[float, ...]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    late: float = 0.0

    def served(self, began: float, outputs: Outputs) -> None:
        end = _clock()
        wrong = None if self.plan.expected is None else difference(outputs, self.plan.expected)
        if wrong is not None:
            self.errors.append((MISMATCH, wrong))
            return
        times = outputs.timings
        self.records.append(record(end, end - began, times.queue, times.compute, times.broker))

    def failed(self, error: OffloadError) -> None:
        self.errors.append((error.code.value, error.message))

    def take(self) -> Taken:
        records, self.records = self.records, []
        errors, self.errors = self.errors, []
        sent, self.sent = self.sent, 0
        return records, errors, sent, self.late


def main(pipe: Connection) -> None:
    """Receive a plan, then levels until None. Each level runs until the next message.

    The process sends None when it is ready: after it has the plan, and after the last report of each level.
    """
    try:
        plan = pipe.recv()
        pipe.send(None)
        while (level := pipe.recv()) is not None:
            tally = Tally(plan)
            if level.rate:
                _open_loop(pipe, tally, level)
            elif level.concurrency == 1:
                _one(pipe, tally)
            elif level.concurrency:
                asyncio.run(_several(pipe, tally, level))
            else:
                pipe.recv()
            pipe.send(tally.take())
            pipe.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent process ended


def _one(pipe: Connection, tally: Tally) -> None:
    """One request at a time, as a device sends them."""
    plan = tally.plan
    with Client(plan.brokers, max_frame_bytes=plan.max_frame_bytes) as client:
        while not _report(pipe, tally):
            until = _clock() + _REPORT
            while _clock() < until:
                began = _clock()
                try:
                    tally.served(began, client.infer(plan.model, plan.inputs, **plan.call))
                except OffloadError as error:
                    tally.failed(error)
                    time.sleep(_AFTER_ERROR)


async def _several(pipe: Connection, tally: Tally, level: Level) -> None:
    """`level.concurrency` requests at a time over one connection."""
    plan = tally.plan
    stopped = False

    async def keep_sending(client: AsyncClient) -> None:
        while not stopped:
            began = _clock()
            try:
                tally.served(began, await client.infer(plan.model, plan.inputs, **plan.call))
            except OffloadError as error:
                tally.failed(error)
                await asyncio.sleep(_AFTER_ERROR)

    async with AsyncClient(plan.brokers, max_frame_bytes=plan.max_frame_bytes) as client:
        senders = [asyncio.create_task(keep_sending(client)) for _ in range(level.concurrency)]
        while not _report(pipe, tally):
            await asyncio.sleep(_REPORT)
        stopped = True
        await asyncio.gather(*senders)


def _open_loop(pipe: Connection, tally: Tally, level: Level) -> None:
    """Send at the times of the plan, whatever is in flight.

    Latency counts from the planned time, so that a fabric that stalls also pays for the requests that it delays.
    """
    plan, rng = tally.plan, random.Random(tally.plan.seed)
    stopped = False

    def ended(began: float, future: Future[Outputs]) -> None:
        if stopped:
            return  # closing the client cancels it
        error = future.exception()
        if error is None:
            tally.served(began, future.result())
        elif isinstance(error, OffloadError):
            tally.failed(error)

    with Client(plan.brokers, max_frame_bytes=plan.max_frame_bytes) as client:
        client.status()  # connects, so that the first request does not wait for it
        send_at = report_at = _clock()
        while not stopped:
            now = _clock()
            if now >= report_at:
                tally.late = max(0.0, now - send_at)
                stopped = _report(pipe, tally)
                report_at = now + _REPORT
            elif now >= send_at:
                future = client.submit(plan.model, plan.inputs, **plan.call)
                future.add_done_callback(functools.partial(ended, send_at))
                tally.sent += 1
                send_at += rng.expovariate(level.rate) if plan.poisson else 1 / level.rate
            else:
                time.sleep(min(send_at, report_at) - now)


def _report(pipe: Connection, tally: Tally) -> bool:
    """Send a report. Returns whether to stop."""
    pipe.send(tally.take())
    return pipe.poll() and pipe.recv() is None
