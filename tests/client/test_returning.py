"""Clients that go back to a broker, at the worst moments: Ctrl-C, a fork, callbacks, calls that are canceled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest

from tests.support.forks import run_in_fork
from tests.support.interrupts import interrupted_everywhere
from tests.support.processes import eventually
from zmq_offload.client import returning, spread
from zmq_offload.client.aioreturning import AsyncDrivers
from zmq_offload.client.returning import Drivers
from zmq_offload.client.session import RetryPolicy
from zmq_offload.client.streamlink import StreamLink
from zmq_offload.client.watchedlink import WatchedLink
from zmq_offload.common.lifetime import tell_of_forks
from zmq_offload.errors import InvalidArgument

BROKERS = ["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"]  # nobody listens there
POLICY = RetryPolicy(patience=0.02, spread=False, come_back=0.001)


class Left:
    """The drivers of a client that had to leave its first broker."""

    def __init__(self) -> None:
        self.tried = 0
        connection = StreamLink(BROKERS, POLICY, 1 << 20)
        connection.reconnect(1)
        self.drivers = Drivers(connection, self._make)

    def _make(self, endpoints: Sequence[str]) -> StreamLink:
        self.tried += 1
        return StreamLink(endpoints, POLICY, 1 << 20)

    def tries_again(self) -> None:
        """Wait until the client looks whether its first broker is back."""
        before = self.tried
        eventually(lambda: self.drivers.current() and self.tried > before)


@pytest.fixture
def left() -> Iterator[Left]:
    left = Left()
    yield left
    left.drivers.close()
    eventually(lambda: not left.drivers._others)


@pytest.mark.parametrize("module", [returning, spread], ids=["threads", "times"])
def test_ctrl_c_in_a_client_that_looks_for_a_broker(module: ModuleType) -> None:
    for run in interrupted_everywhere(module):
        left = Left()
        run(left.drivers.current)
        left.tries_again()
        closer = threading.Thread(target=left.drivers.close, daemon=True)
        closer.start()
        closer.join(20)
        assert not closer.is_alive(), "close hangs"
        eventually(lambda left=left: not left.drivers._others)  # type: ignore[misc]


def test_a_forked_child_does_not_go_back(left: Left) -> None:
    tell_of_forks(left.drivers)
    left.tries_again()

    def look() -> bool:
        threads = threading.active_count()
        for _ in range(1000):
            left.drivers.current()
        return left.drivers.forgotten and threading.active_count() == threads

    assert run_in_fork(look) == "True"


def test_close_is_refused_in_a_callback_of_a_call_that_finishes_where_it_is(left: Left) -> None:
    old = Left().drivers
    left.drivers._others.append(old.driver)
    old.driver._exchange.driving = threading.get_ident()
    with pytest.raises(InvalidArgument):
        left.drivers.refuse_callback("close")
    old.driver._exchange.driving = None
    old.close()
    left.drivers._others.remove(old.driver)


def test_a_canceled_call_is_not_the_question_to_a_broker_that_is_tried() -> None:
    async def run() -> None:
        connection = WatchedLink(BROKERS, POLICY, 1 << 20)
        connection.reconnect(1)
        drivers = AsyncDrivers(connection, lambda endpoints: WatchedLink(endpoints, POLICY, 1 << 20))
        driver = drivers.driver
        ended: list[object] = []
        number = driver.start(driver.attach(), ended.append, driver.session.query, "models", 5.0)
        while len(drivers.readers.all) == 1:
            drivers.current()
            await asyncio.sleep(0.001)
        drivers.cancel(number)
        while len(drivers.readers.all) > 1:  # it has an answer, or none in its time
            await asyncio.sleep(0.001)
        assert not ended and not driver.outstanding
        drivers.close()

    asyncio.run(asyncio.wait_for(run(), 20))
