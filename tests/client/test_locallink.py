"""The way to a broker in the same process, driven by the loop's driver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from zmq_offload.client.aiodriver import AsyncDriver
from zmq_offload.client.locallink import LocalLink, Replies
from zmq_offload.client.session import Complete, RetryPolicy
from zmq_offload.errors import NotFound, Unavailable
from zmq_offload.protocol import messages as wire

ARGUMENTS = ("echo", [b"header"], 5.0)


class Broker:
    """Keeps what it is given; the test answers."""

    endpoint = "tcp://127.0.0.1:5555"

    def __init__(self) -> None:
        self.taken: list[tuple[wire.FromClient, Sequence[Any]]] = []
        self.deliver: Callable[[Replies], None] | None = None

    def attach(self, deliver: Callable[[Replies], None] | None) -> None:
        self.deliver = deliver

    def take(self, messages: Sequence[tuple[wire.FromClient, Sequence[Any]]]) -> None:
        self.taken += messages

    def request(self, at: int) -> wire.Request:
        message = self.taken[at][0]
        assert isinstance(message, wire.Request)
        return message

    def reply(self, *messages: wire.ToClient) -> None:
        assert self.deliver is not None
        self.deliver([(message, [b"output"]) for message in messages])


async def made(patience: float = 5.0) -> tuple[Broker, LocalLink, AsyncDriver]:
    broker = Broker()
    link = LocalLink(broker, RetryPolicy(heartbeat=patience / 5, patience=patience), 1 << 20)
    return broker, link, AsyncDriver(link)


def call(driver: AsyncDriver, arguments: tuple[Any, ...] = ARGUMENTS) -> asyncio.Task[Complete]:
    return asyncio.ensure_future(driver.call(driver.attach(), driver._connection.session.request, *arguments))


def result(request: wire.Request) -> wire.Result:
    return wire.Result(request.session, request.id, 1, 0, 0, 0)


def test_calls_are_handed_over_and_answered() -> None:
    async def test() -> None:
        broker, _, driver = await made()
        first, second, third = (call(driver) for _ in range(3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [payload for _, payload in broker.taken] == [[b"header"]] * 3
        one, two = broker.request(0), broker.request(1)
        broker.reply(wire.Error(two.session, two.id, "NOT_FOUND", "no such model"), result(one))
        assert (await first).payload == [b"output"]
        with pytest.raises(NotFound, match="no such model"):
            await second
        third.cancel()
        await asyncio.wait([third])
        await asyncio.sleep(0)
        assert broker.taken[-1][0] == wire.Cancel(one.session, broker.request(2).id)
        driver.close()
        assert broker.deliver is None

    asyncio.run(test())


def test_a_deadline_ends_a_call_and_a_close_cancels_it() -> None:
    async def test() -> None:
        broker, _, driver = await made()
        with pytest.raises(Unavailable, match="no broker answered"):
            await call(driver, ("echo", [b"header"], 0.05))
        waiting = call(driver)
        await asyncio.sleep(0)
        driver.close()
        assert isinstance(broker.taken[-1][0], wire.Cancel), "the last message is handed over at the end"
        waiting.cancel()

    asyncio.run(test())


def test_a_broker_that_does_not_answer_is_asked_again() -> None:
    """The session treats it as any broker; nothing that came before the new beginning is delivered."""

    async def test() -> None:
        broker, link, driver = await made(patience=0.05)
        waiting = call(driver)
        while len(broker.taken) < 3:
            await asyncio.sleep(0.01)
        kinds = [type(message) for message, _ in broker.taken]
        assert kinds[0] is wire.Request and wire.Ping in kinds
        assert link.refusal() is None and link.is_open
        broker.reply(result(broker.request(0)))
        assert (await waiting).payload == [b"output"]
        driver.close()

    asyncio.run(test())


def test_a_failure_ends_the_calls_and_the_next_one_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        broker, link, driver = await made()
        waiting = call(driver)
        await asyncio.sleep(0)
        driver._fail(OSError(5, "it broke"))
        with pytest.raises(Unavailable, match="it broke"):
            await waiting
        assert broker.deliver is None and not link.is_open
        again = call(driver)
        await asyncio.sleep(0)
        broker.reply(result(broker.request(-1)))
        assert (await again).payload == [b"output"]
        link.forget()
        assert not link.is_open

    asyncio.run(test())
