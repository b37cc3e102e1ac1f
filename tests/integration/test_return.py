"""Clients go back to a broker that was killed when it is there again, and no request is lost on the way."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

from tests.support.processes import (
    Fabric,
    eventually,
    faulty_workers,
    running_broker,
    running_workers,
    signed_workers,
    wait_for_workers,
)
from zmq_offload import AsyncClient, Client
from zmq_offload.client.aiocalls import LinkCalls
from zmq_offload.client.aioreturning import AsyncDrivers
from zmq_offload.client.returning import Drivers
from zmq_offload.client.session import Complete, Fail, RetryPolicy
from zmq_offload.client.streamlink import StreamLink
from zmq_offload.client.watchedlink import WatchedLink
from zmq_offload.gateway.fabric import link_to
from zmq_offload.protocol.packed import pack

X = {"x": np.arange(6, dtype=np.float32)}
POLICY = RetryPolicy(heartbeat=0.1, patience=0.5, spread=False, come_back=0.2)
SOON = dataclasses.replace(POLICY, come_back=0.02)


class Pair:
    """Two brokers with the same workers. The first one, which all clients prefer, may die and come back."""

    def __init__(self, first: Fabric, second: Fabric, stack: ExitStack) -> None:
        self.endpoints = [first.frontend, second.frontend]
        self._first, self._stack = first, stack

    def kill(self) -> None:
        os.kill(self._first.broker.popen.pid, signal.SIGKILL)
        self._first.broker.wait()

    def start(self) -> None:
        """Start the first one again, at its ports."""
        places = {"frontend": self._first.frontend, "backend": self._first.backend}
        self._first = self._stack.enter_context(running_broker(**places))


@contextmanager
def pair(workers: Callable[..., Any]) -> Iterator[Pair]:
    with ExitStack() as stack:
        first, second = (stack.enter_context(running_broker()) for _ in range(2))
        stack.enter_context(workers(f"{first.backend},{second.backend}"))
        for broker in (first, second):
            wait_for_workers(broker.frontend, 2)
        yield Pair(first, second, stack)


class Callers:
    """Clients of each kind, which call again and again: threads that share a client, tasks, and calls of a gateway."""

    def __init__(self, endpoints: list[str]) -> None:
        self.served = [0, 0, 0]
        self.errors: list[BaseException] = []
        self.at: list[Callable[[], str]] = [lambda: ""] * 3
        self._endpoints = endpoints
        self._stop = threading.Event()
        self.client = Client(endpoints, policy=POLICY)
        self.at[0] = lambda: self.client._drivers.driver.connection.endpoint
        self._threads = [threading.Thread(target=self._call) for _ in range(3)]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(self._run())))

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.client.close()

    def _note(self, kind: int, call: Callable[[], Any]) -> None:
        """Count what a call brings."""
        try:
            np.testing.assert_array_equal(call()["x"], X["x"])
            self.served[kind] += 1
        except BaseException as error:
            self.errors.append(error)

    def _call(self) -> None:
        while not self._stop.is_set():
            self._note(0, lambda: self.client.infer("echo", X))
            self._note(0, self.client.submit("echo", X).result)

    async def _run(self) -> None:
        connect = functools.partial(link_to, policy=POLICY, max_frame_bytes=1 << 28)
        calls = LinkCalls(connect(self._endpoints), connect)
        async with AsyncClient(self._endpoints, policy=POLICY) as client:
            self.at[1] = lambda: client._drivers.driver.connection.endpoint
            self.at[2] = lambda: calls._drivers.driver.connection.endpoint
            await asyncio.gather(*(self._tasks(client) for _ in range(8)), *(self._gateway(calls) for _ in range(8)))
        calls.close()

    async def _tasks(self, client: AsyncClient) -> None:
        while not self._stop.is_set():
            result = await client.infer("echo", X)
            self._note(1, lambda result=result: result)  # type: ignore[misc]

    async def _gateway(self, calls: LinkCalls) -> None:
        while not self._stop.is_set():
            ended: asyncio.Future[Complete | Fail] = asyncio.get_running_loop().create_future()
            calls.request(ended.set_result, "echo", pack(X), None, 10.0, 0)
            if isinstance(found := await ended, Fail):
                self.errors.append(found.error)
            self.served[2] += 1

    def are_at(self, endpoint: str) -> None:
        """Wait until all use that broker, and had more answers there."""
        eventually(lambda: self.errors or all(at() == endpoint for at in self.at))
        goal = [count + 20 for count in self.served]
        eventually(lambda: self.errors or all(map(int.__ge__, self.served, goal)))
        assert not self.errors


def test_clients_of_a_broker_that_is_killed_are_back_when_it_is_and_lose_nothing() -> None:
    with pair(lambda backends: faulty_workers(backends, "--processes", "2")) as brokers:
        first, second = brokers.endpoints
        with Callers(brokers.endpoints) as callers:
            callers.are_at(first)
            brokers.kill()
            callers.are_at(second)
            left = callers.client._drivers.driver
            long = callers.client.submit("echo", {"sleep": np.float32(2)})
            brokers.start()
            callers.are_at(first)
            assert long.result()["sleep"] == np.float32(2), "it finished where it was"
            assert long.owner is left  # type: ignore[attr-defined]
            eventually(lambda: left.closed and not callers.client._drivers._others)
        assert not callers.errors


@pytest.mark.chaos
def test_what_an_event_loop_waits_for_finishes_where_it_is() -> None:
    with pair(lambda backends: faulty_workers(backends, "--processes", "2")) as brokers:
        brokers.kill()
        asyncio.run(_moves(brokers))


async def _moves(brokers: Pair) -> None:
    async with AsyncClient(brokers.endpoints, policy=POLICY) as client:
        await client.infer("echo", X)
        left = client._drivers.driver
        long = asyncio.ensure_future(client.infer("echo", {"sleep": np.float32(9)}))
        await asyncio.to_thread(brokers.start)
        while client._drivers.driver is left:
            await client.infer("echo", X)
        assert not long.done() and left.outstanding == 1 and not left.reader.closed
        assert (await long)["sleep"] == np.float32(9)
        while client._drivers._others:
            await asyncio.sleep(0.01)
        assert left.reader.closed and len(client._drivers.readers.all) == 1


class Stays:
    """A client of each kind that is at the second broker, and looks again and again whether the first one is back."""

    def __init__(self, endpoints: list[str]) -> None:
        self._endpoints, self._looks = endpoints, 0
        self.drivers = Drivers(self._second(StreamLink(endpoints, SOON, 1 << 20)), self._make(StreamLink))

    def _second(self, link: Any) -> Any:
        link.reconnect(1)
        return link

    def _make(self, kind: Any) -> Callable[[Sequence[str]], Any]:
        def make(endpoints: Sequence[str]) -> Any:
            self._looks += 1
            return kind(endpoints, SOON, 1 << 20)

        return make

    async def watch(self, then: Callable[[], object]) -> None:
        """Check that neither goes back, and that both do after `then`."""
        drivers = AsyncDrivers(self._second(WatchedLink(self._endpoints, SOON, 1 << 20)), self._make(WatchedLink))
        both = (self.drivers, drivers)
        drivers.driver.attach()
        while self._looks < 6:
            assert [one.current().connection.endpoint for one in both] == self._endpoints[1:] * 2
            await asyncio.sleep(0.01)
        then()
        while any(one.current().connection.endpoint != self._endpoints[0] for one in both):
            await asyncio.sleep(0.01)
        drivers.close()


def test_a_client_does_not_go_back_to_a_broker_to_which_some_workers_have_not_come_back() -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(running_broker()) for _ in range(2))
        both = f"{first.backend},{second.backend}"
        stack.enter_context(running_workers(both, "--executor", "echo"))
        others = stack.enter_context(signed_workers(second.backend))
        wait_for_workers(first.frontend, 1)
        wait_for_workers(second.frontend, 2)
        stays = Stays([first.frontend, second.frontend])
        stack.callback(stays.drivers.close)
        # Without them, the second broker serves no more than the first one.
        asyncio.run(asyncio.wait_for(stays.watch(others.popen.terminate), 30))
