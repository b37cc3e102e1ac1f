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
from zmq_offload.client.aiocalls import LocalCalls
from zmq_offload.client.session import Complete, Fail
from zmq_offload.errors import DeadlineExceeded, InvalidArgument, Unavailable
from zmq_offload.protocol import limits
from zmq_offload.protocol.packed import pack

INPUTS = pack({"x": np.zeros(2, np.float32)})
CONFIG = Config("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", policy=LivenessPolicy(worker_grace=30.0))


class Caller:
    """Calls, and what came of them."""

    def __init__(self, guest: Guest, sharing: Any = None) -> None:
        self.calls = LocalCalls(guest, limits.MESSAGE_BYTES, sharing)
        self.ended: list[Complete | Fail] = []

    def infer(self, timeout: float = 10.0) -> int:
        return self.calls.request(self.ended.append, "m", INPUTS, None, timeout, 0)

    def ask(self) -> int:
        return self.calls.query(self.ended.append, "status", 5.0)

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
                caller.calls.query(ended, "status", 5.0)
            depth -= 1

        caller.calls.query(ended, "status", 5.0)
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
        caller.calls.cancel(canceled)
        await until(lambda: not requests(guest))
        assert not caller.ended

    with_guest(talk)


def test_closing_takes_everything_back() -> None:
    async def talk(guest: Guest) -> None:
        caller = Caller(guest)
        caller.infer()
        await until(lambda: requests(guest) == 1)
        caller.calls.close()
        assert not requests(guest)
        assert isinstance(caller.ended[0], Fail)

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
        caller.calls.close()

    assert with_guest(talk) == ["failed"]


def test_exposed_without_keys() -> None:
    async def talk(guest: Guest) -> None:
        raise AssertionError

    with pytest.raises(InvalidArgument, match=r"tcp://\*:0 can be reached from other machines") as info:
        with_guest(talk, Config("tcp://*:0"))
    assert "--server-key" not in info.value.message, "it would be refused, too"
