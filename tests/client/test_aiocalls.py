"""Calls of a broker in the same process: what is handed over when, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from zmq_offload.client.aiocalls import LocalCalls, Replies
from zmq_offload.client.session import Complete, Fail
from zmq_offload.errors import Cancelled, InvalidArgument, NotFound, Unavailable
from zmq_offload.net.sharedmemory.references import Reference, SharedFrame
from zmq_offload.net.sharedmemory.sharing import Unreadable
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.packed import pack

INPUTS = pack({"x": np.zeros(2, np.float32)})


class Broker:
    """Keeps what it is given; the test answers."""

    endpoint = "tcp://127.0.0.1:5555"

    def __init__(self) -> None:
        self.taken: list[list[wire.FromClient]] = []
        self.deliver: Callable[[Replies], None] | None = None

    def attach(self, deliver: Callable[[Replies], None] | None) -> None:
        self.deliver = deliver

    def take(self, messages: Sequence[tuple[wire.FromClient, Sequence[Any]]]) -> None:
        self.taken.append([message for message, _ in messages])

    def reply(self, *replies: tuple[wire.ToClient, Sequence[Any]]) -> None:
        assert self.deliver is not None
        self.deliver(replies)


class Bench:
    """Calls of such a broker, and what came of them."""

    def __init__(self, sharing: Any = None) -> None:
        self.broker = Broker()
        self.calls = LocalCalls(self.broker, 1 << 20, sharing)
        self.ended: list[Complete | Fail] = []

    def infer(self) -> int:
        return self.calls.request(self.ended.append, "echo", INPUTS, 3, 2.0, 7)

    @property
    def session(self) -> bytes:
        return self.calls._token

    def result(self, number: int, *payload: Any) -> tuple[wire.ToClient, Sequence[Any]]:
        return wire.Result(self.session, number, 3, 0, 0, 0), payload


def run(talk: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await talk()

    asyncio.run(main())


async def turn() -> None:
    await asyncio.sleep(0)


def test_a_single_call_is_handed_over_at_once_and_others_together() -> None:
    async def talk() -> None:
        bench = Bench()
        first = bench.infer()
        ((request,),) = bench.broker.taken
        assert request == wire.Request(bench.session, first, "echo", 3, 1_980_000, 7, b"", 1 << 20)
        second = bench.infer()
        third = bench.calls.query(bench.ended.append, "models", 1.0)
        assert len(bench.broker.taken) == 1
        await turn()
        assert [type(message) for message in bench.broker.taken[1]] == [wire.Request, wire.Query]
        bench.broker.reply(
            (wire.Error(bench.session, second, "NOT_FOUND", "no such model"), ()),
            bench.result(first, b"head", b"tensor"),
            (wire.Answer(bench.session, third), [b"body"]),
        )
        failed, done, answered = bench.ended
        assert isinstance(failed, Fail) and isinstance(failed.error, NotFound)
        assert failed.error.message == "no such model"
        assert isinstance(done, Complete) and (done.id, done.payload) == (first, (b"head", b"tensor"))
        assert isinstance(answered, Complete) and answered.payload == [b"body"]
        await turn()
        assert len(bench.broker.taken) == 2

    run(talk)


def test_a_canceled_call_ends_no_more() -> None:
    async def talk() -> None:
        bench = Bench()
        number = bench.infer()
        bench.calls.cancel(number)
        bench.calls.cancel(number)
        await turn()
        assert bench.broker.taken[1:] == [[wire.Cancel(bench.session, number)]]
        bench.broker.reply(bench.result(number, b"head"))
        assert not bench.ended

    run(talk)


def test_closing_cancels_what_is_outstanding() -> None:
    async def talk() -> None:
        bench = Bench()
        first, second = bench.infer(), bench.infer()
        bench.calls.close()
        handed = [message for messages in bench.broker.taken for message in messages]
        assert handed[2:] == [wire.Cancel(bench.session, first), wire.Cancel(bench.session, second)]
        assert [type(one.error) for one in bench.ended if isinstance(one, Fail)] == [Cancelled, Cancelled]
        assert bench.broker.deliver is None
        bench.calls.close()
        bench.calls.cancel(first)
        await turn()
        with pytest.raises(Cancelled, match="closed"):
            bench.infer()

    run(talk)


def test_what_cannot_be_sent_is_refused_before() -> None:
    async def talk() -> None:
        bench = Bench()
        large = pack({"x": np.zeros(1 << 20, np.float32)})
        with pytest.raises(InvalidArgument, match="'x'"):
            bench.calls.request(bench.ended.append, "echo", large, None, 1.0, 0)
        with pytest.raises(InvalidArgument, match="priority"):
            bench.calls.request(bench.ended.append, "echo", INPUTS, None, 1.0, 1000)
        assert not bench.broker.taken and not bench.ended

    run(talk)


class Lost:
    """What this process shares, when the worker that had the outputs has ended."""

    def read(self, payload: Any) -> Any:
        raise Unreadable("process 1 has ended")


def test_outputs_that_are_gone_are_an_error() -> None:
    async def talk() -> None:
        bench = Bench(Lost())
        frame = SharedFrame(Reference(1, 1, b"c" * 16, 0, 0, 0, 1))
        bench.broker.reply(bench.result(bench.infer(), b"head", frame))
        (failed,) = bench.ended
        assert isinstance(failed, Fail) and isinstance(failed.error, Unavailable)
        assert failed.error.message == "the outputs were lost: process 1 has ended"

    run(talk)


def test_a_header_is_read_as_bytes() -> None:
    """A long one of which only a part came at first is a view of memory."""

    async def talk() -> None:
        bench = Bench()
        tensor = memoryview(b"tensor")
        bench.broker.reply(bench.result(bench.infer(), memoryview(b"head"), tensor))
        (done,) = bench.ended
        assert isinstance(done, Complete) and type(done.payload[0]) is bytes and done.payload[1] is tensor

    run(talk)


def test_a_callback_that_fails_harms_no_other_call(caplog: pytest.LogCaptureFixture) -> None:
    async def talk() -> None:
        bench = Bench()

        def fail(_: Complete | Fail) -> None:
            raise ZeroDivisionError

        number = bench.calls.query(fail, "models", 1.0)
        other = bench.infer()
        bench.broker.reply((wire.Answer(bench.session, number), [b""]), bench.result(other, b"head"))
        assert len(bench.ended) == 1 and "a callback of a call failed" in caplog.text

    run(talk)
