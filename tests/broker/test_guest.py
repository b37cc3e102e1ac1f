"""A broker in an event loop, and clients in its process: what comes when, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from broker.config import Config
from broker.guest import Guest
from broker.liveness import LivenessPolicy
from zmq_offload.client.aiodriver import AsyncDriver
from zmq_offload.client.locallink import LocalLink
from zmq_offload.client.session import Complete, Fail
from zmq_offload.errors import DeadlineExceeded, InvalidArgument, Unavailable
from zmq_offload.net.sharedmemory.references import Reference, SharedFrame
from zmq_offload.net.sharedmemory.sharing import Unreadable
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.packed import pack

PAYLOAD = pack({"x": np.zeros(2, np.float32)}).frames
CONFIG = Config("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", policy=LivenessPolicy(worker_grace=30.0))


class Caller:
    """A link with its driver, and what came of its calls."""

    def __init__(self, guest: Guest, sharing: Any = None) -> None:
        self.link = LocalLink(guest, None, limits.MESSAGE_BYTES, sharing)
        self.driver = AsyncDriver(self.link)
        self.loop = self.driver.attach()
        self.ended: list[Complete | Fail] = []

    def infer(self, timeout: float = 10.0) -> int:
        return self.driver.start(self.loop, self.ended.append, self.link.session.request, "m", PAYLOAD, timeout)

    def ask(self) -> int:
        return self.driver.start(self.loop, self.ended.append, self.link.session.query, "status", 5.0)

    async def next(self) -> Complete | Fail:
        await until(lambda: self.ended)
        return self.ended.pop(0)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not come true within 10 s")


def with_guest(talk: Callable[[Guest], Awaitable[None]], config: Config = CONFIG) -> list[str]:
    """Run `talk`. Returns "failed" for each time that the guest said so."""
    told: list[str] = []

    async def run() -> None:
        guest = Guest(config, None, lambda: told.append("failed"))
        try:
            await talk(guest)
        finally:
            guest.close()

    asyncio.run(run())
    return told


def requests(guest: Guest) -> int:
    return len(guest._broker.core.ledger.requests)


def test_an_answer_never_comes_before_the_call_returned() -> None:
    """Nor within another callback of the client."""

    async def talk(guest: Guest) -> None:
        caller = Caller(guest)
        depth, deepest = 0, 0

        def ended(action: Complete | Fail) -> None:
            nonlocal depth, deepest
            depth += 1
            deepest = max(deepest, depth)
            if len(caller.ended) < 5:
                caller.ended.append(action)
                caller.driver.start(caller.loop, ended, caller.link.session.query, "status", 5.0)
            depth -= 1

        caller.driver.start(caller.loop, ended, caller.link.session.query, "status", 5.0)
        assert not caller.ended
        await until(lambda: len(caller.ended) == 5)
        assert deepest == 1
        assert all(type(action) is Complete for action in caller.ended)

    assert with_guest(talk) == []


def test_requests_wait_expire_and_are_canceled() -> None:
    async def talk(guest: Guest) -> None:
        caller = Caller(guest)
        canceled = caller.infer()
        caller.infer(0.05)
        await until(lambda: requests(guest) == 2)
        late = await caller.next()
        assert isinstance(late, Fail) and isinstance(late.error, DeadlineExceeded)
        assert "while queued" in late.error.message, "it is the broker that says so"
        caller.driver.cancel(canceled)
        await until(lambda: not requests(guest))
        assert not caller.ended

    with_guest(talk)


def test_closing_takes_everything_back() -> None:
    async def talk(guest: Guest) -> None:
        caller = Caller(guest)
        caller.infer()
        await until(lambda: requests(guest) == 1)
        caller.driver.close()
        assert not requests(guest)
        assert isinstance(caller.ended[0], Fail)

    with_guest(talk)


def test_another_connection_goes_on_with_the_calls() -> None:
    """As after a long stop of the loop, when the session takes the broker for silent."""

    async def talk(guest: Guest) -> None:
        caller = Caller(guest)
        caller.infer(0.3)
        await until(lambda: requests(guest) == 1)
        caller.driver._perform(caller.link.session._switch(caller.loop.time()))
        late = await caller.next()
        assert isinstance(late, Fail) and "while queued" in late.error.message
        assert guest._broker.core.ledger.counts["duplicate"] == 1

    with_guest(talk)


def test_drain_finishes_what_is_accepted_within_its_time() -> None:
    async def talk(guest: Guest) -> None:
        caller = Caller(guest)
        caller.infer()
        await until(lambda: requests(guest) == 1)
        await guest.end(0.05)
        ended = await caller.next()
        assert isinstance(ended, Fail) and isinstance(ended.error, Unavailable)
        assert "the broker shut down before the request was done" in ended.error.message

    assert with_guest(talk) == []


@pytest.mark.parametrize("where", ["handle", "wait"])
def test_a_broker_that_breaks_says_so(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def talk(guest: Guest) -> None:
        caller = Caller(guest)
        monkeypatch.setattr(guest._broker if where == "handle" else guest._ports, where, fail)
        if where == "handle":
            caller.ask()
        else:
            _, writer = await asyncio.open_connection(*guest.endpoint.removeprefix("tcp://").split(":"))
            await until(lambda: guest.error)
            writer.close()
        assert isinstance(guest.error, ZeroDivisionError)
        await guest.end(1.0)
        caller.driver.close()

    assert with_guest(talk) == ["failed"]


def test_exposed_without_keys() -> None:
    async def talk(guest: Guest) -> None:
        raise AssertionError

    with pytest.raises(InvalidArgument, match=r"tcp://\*:0 can be reached from other machines without keys"):
        with_guest(talk, Config("tcp://*:0"))


class Lost:
    """What this process shares, when the worker that had the outputs has ended."""

    def read(self, payload: Any) -> Any:
        raise Unreadable("process 1 has ended")


def test_outputs_that_are_gone_are_an_error() -> None:
    async def talk(guest: Guest) -> None:
        link = LocalLink(guest, None, limits.MESSAGE_BYTES, Lost())  # type: ignore[arg-type]
        frame = SharedFrame(Reference(1, 1, b"c" * 16, 0, 0, 0, 1))
        link._delivered([(wire.Result(b"s" * 16, 7, 1, 0, 0, 0), [b"head", frame])])
        ((message, payload),) = link.receive(1)
        assert isinstance(message, wire.Error) and message.id == 7 and not payload
        assert (message.code, message.text) == ("UNAVAILABLE", "the outputs were lost: process 1 has ended")

    with_guest(talk)


def test_a_header_is_read_as_bytes() -> None:
    async def talk(guest: Guest) -> None:
        link = LocalLink(guest, None, limits.MESSAGE_BYTES)
        tensor = memoryview(b"tensor")
        link._delivered([(wire.Result(b"s" * 16, 7, 1, 0, 0, 0), [memoryview(b"head"), tensor])])
        ((_, payload),) = link.receive(1)
        assert type(payload[0]) is bytes and payload[1] is tensor

    with_guest(talk)
