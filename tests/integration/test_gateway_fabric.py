"""The gateway's client of the broker, without the protocols around it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
import zmq

from tests.support.processes import running_broker, status
from zmq_offload.client.aiocalls import LinkCalls
from zmq_offload.client.session import RetryPolicy
from zmq_offload.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    OffloadError,
    PermissionDenied,
    Unavailable,
)
from zmq_offload.gateway.calls import Call, Outputs
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.fabric import BrokerFabric, link_to
from zmq_offload.net.grants import Grant
from zmq_offload.net.keys import new_keys
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.packed import pack
from zmq_offload.protocol.payload import encode_body
from zmq_offload.testing import Fabric

ALL = Grant("all")
OTHERS = Grant("others", frozenset({"other"}))
X = np.arange(12, dtype="f4").reshape(3, 4)
ECHO = Call("echo", None, pack({"x": X}))


@asynccontextmanager
async def behind(
    *brokers: str, timeout: float = 10.0, control: bool = False, keys: Sequence[Path] = ()
) -> AsyncIterator[BrokerFabric]:
    link = link_to(brokers, RetryPolicy(heartbeat=0.1, patience=0.3, spread=False), 1 << 28, *keys)
    fabric = BrokerFabric(LinkCalls(link), timeout, ModelControl(allowed=control))
    try:
        yield fabric
    finally:
        fabric.close()


async def end_of(start: Callable[..., Any], *arguments: object) -> Any:
    """What a method of the fabric passes to its callback."""
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    start(*arguments, ended.set_result)
    return await ended


async def listed(fabric: BrokerFabric, grant: Grant, *wanted: Any) -> Catalog | OffloadError:
    ended: asyncio.Future[Catalog | OffloadError] = asyncio.get_running_loop().create_future()
    fabric.models(grant, ended.set_result, *wanted)
    return await ended


async def failures(fabric: BrokerFabric, calls: Sequence[tuple[Call, Grant]]) -> list[OffloadError]:
    found = [await end_of(fabric.infer, call, grant) for call, grant in calls]
    assert all(isinstance(error, OffloadError) for error in found), found
    return found


def test_requests_end_with_outputs_and_are_counted(echo_fabric: Fabric) -> None:
    async def run() -> None:
        async with behind(echo_fabric.frontend) as fabric:
            outputs = await asyncio.gather(*[end_of(fabric.infer, ECHO, ALL) for _ in range(20)])
            for each in outputs:
                assert isinstance(each, Outputs) and each.version == 1
                np.testing.assert_array_equal(each.tensors["x"], X)
            large = {"x": np.arange(1 << 20, dtype="f4"), "y": np.array(7, "i8"), "z": np.zeros((0, 3), "i1")}
            each = await end_of(fabric.infer, Call("echo", 1, pack(large)), ALL)
            for name, array in large.items():
                np.testing.assert_array_equal(each.tensors[name], array)
            assert fabric.outstanding == 0
            found = fabric.statistics.of("echo", 1)
            assert (found.success.count, found.queue.count, found.compute.count, found.fail.count) == (21, 21, 21, 0)
            assert [(size, each.count) for size, each in found.batches(batched=True)] == [(3, 20), (1 << 20, 1)]

    asyncio.run(run())


def test_what_goes_wrong_is_passed_on(echo_fabric: Fabric) -> None:
    wrong = [
        (ECHO, OTHERS, PermissionDenied, "others is not for model 'echo'"),
        (ECHO._replace(timeout=0.0), ALL, DeadlineExceeded, "the deadline was over"),
        (ECHO._replace(priority=101), ALL, InvalidArgument, "priority 101"),
        (ECHO._replace(version=0), ALL, InvalidArgument, "version 0"),
        (ECHO._replace(model="a b"), ALL, NotFound, "model 'a b' is not served, and no model can have this name"),
    ]

    async def run() -> None:
        async with behind(echo_fabric.frontend) as fabric:
            for (_, _, kind, says), error in zip(
                wrong, await failures(fabric, [(call, grant) for call, grant, *_ in wrong]), strict=True
            ):
                assert type(error) is kind and says in error.message
            assert isinstance(await end_of(fabric.infer, ECHO._replace(timeout=1e12), ALL), Outputs)
            await listed(fabric, ALL)
            late = ECHO._replace(timeout=1e-6)
            await failures(fabric, [(late, ALL), (late._replace(version=7), ALL), (late._replace(model="nobody"), ALL)])
            counts = [
                fabric.statistics.of(*version).fail.count for version in (("echo", 1), ("echo", 7), ("nobody", 1))
            ]
            assert counts == [1, 0, 0]

    asyncio.run(run())


def test_a_key_sees_its_own_models(echo_fabric: Fabric) -> None:
    async def run() -> None:
        async with behind(echo_fabric.frontend) as fabric:
            answers = await asyncio.gather(*[listed(fabric, ALL) for _ in range(5)], listed(fabric, OTHERS))
            names = [[m.name for m in answer.models] for answer in answers if isinstance(answer, Catalog)]
            assert names == [["echo"]] * 5 + [[]]

    asyncio.run(run())


def test_models_are_unloaded_and_loaded_at_this_gateway(echo_fabric: Fabric) -> None:
    async def run() -> None:
        async with behind(echo_fabric.frontend, control=True) as fabric, behind(echo_fabric.frontend) as other:
            assert isinstance(await end_of(fabric.unload, "echo", OTHERS), PermissionDenied)
            assert await end_of(fabric.unload, "nobody", ALL) is None
            assert await end_of(fabric.unload, "echo", ALL) is None
            (error,) = await failures(fabric, [(ECHO, ALL)])
            assert type(error) is NotFound and "is unloaded" in error.message
            catalog = await listed(fabric, ALL, "echo")
            assert isinstance(catalog, Catalog) and [(m.name, m.open) for m in catalog.models] == [("echo", False)]
            assert isinstance(await end_of(other.infer, ECHO, ALL), Outputs)
            assert type(await end_of(fabric.load, "nobody", ALL)) is Internal
            assert await end_of(fabric.load, "echo", ALL) is None
            assert isinstance(await end_of(fabric.infer, ECHO, ALL), Outputs)
            assert type(await end_of(other.unload, "echo", ALL)) is Unavailable

    asyncio.run(run())


def test_a_canceled_request_is_not_reported(echo_fabric: Fabric) -> None:
    async def run() -> None:
        async with behind(echo_fabric.frontend) as fabric:
            ended: list[object] = []
            accepted = status(echo_fabric.frontend)["requests"]["accepted"]
            fabric.models(ALL, lambda _: None)  # the first message of a turn of the loop is sent at once
            cancel = fabric.infer(ECHO, ALL, ended.append)
            leave = fabric.models(ALL, ended.append)
            assert fabric.outstanding == 1
            cancel()
            cancel()
            leave()
            assert fabric.outstanding == 0
            assert isinstance(await end_of(fabric.infer, ECHO, ALL), Outputs)
            assert isinstance(await listed(fabric, ALL), Catalog)
            assert ended == []
            now = status(echo_fabric.frontend)["requests"]["accepted"]
            assert now == accepted + 1, "what is canceled in the same turn of the loop is not sent"

    asyncio.run(run())


def test_a_callback_that_fails_harms_no_other_request(echo_fabric: Fabric, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    async def run() -> None:
        async with behind(echo_fabric.frontend) as fabric:
            fabric.infer(ECHO, ALL, broken)
            fabric.models(ALL, broken)
            answers = await asyncio.gather(end_of(fabric.infer, ECHO, ALL), listed(fabric, ALL))
            assert [type(answer) for answer in answers] == [Outputs, Catalog]

    asyncio.run(run())
    assert [record.message for record in caplog.records] == ["an answer cannot be returned"] * 2


def test_who_waits_for_an_answer_that_cannot_be_returned_is_told(echo_fabric: Fabric) -> None:
    """For instance outputs that no memory is left to encode."""

    def failing(ended: asyncio.Future[Any]) -> Callable[[Any], None]:
        def take(answer: Any) -> None:
            if not isinstance(answer, OffloadError):
                raise MemoryError
            ended.set_result(answer)

        return take

    async def run() -> None:
        async with behind(echo_fabric.frontend) as fabric:
            loop = asyncio.get_running_loop()
            ran, asked = loop.create_future(), loop.create_future()
            fabric.infer(ECHO, ALL, failing(ran))
            fabric.models(ALL, failing(asked))
            assert [type(answer) for answer in await asyncio.gather(ran, asked)] == [Internal, Internal]

    asyncio.run(run())


def test_failures_count_although_nobody_has_asked_for_the_models(echo_fabric: Fabric) -> None:
    async def run() -> None:
        async with behind(echo_fabric.frontend) as fabric:
            assert isinstance(await end_of(fabric.infer, ECHO, ALL), Outputs)
            late = ECHO._replace(timeout=1e-6)
            await asyncio.gather(*[end_of(fabric.infer, call, ALL) for call in (late, late._replace(version=1))])
            while fabric.statistics.of("echo", 1).fail.count != 2:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 20))


def test_an_answer_that_cannot_be_read_is_not_the_clients_fault() -> None:
    """A client that is told of an invalid argument would not send it again, and look for what is wrong in it."""
    results = itertools.cycle([[], [b"\xc1"], [*ECHO.inputs.frames, b"more"]])
    answers = itertools.cycle([[b"\xc1"], [encode_body(7)], []])
    over = threading.Event()

    def answer(sock: zmq.Socket[bytes]) -> None:
        while not over.is_set():
            if sock.poll(20):
                peer, envelope, *_ = sock.recv_multipart()
                asked = wire.decode(envelope, wire.FROM_CLIENT)
                if isinstance(asked, wire.Request):
                    result = wire.Result(asked.session, asked.id, 1, 0, 0, 0)
                    sock.send_multipart([peer, wire.encode(result), *next(results)])
                elif isinstance(asked, wire.Query):
                    sock.send_multipart([peer, wire.encode(wire.Answer(asked.session, asked.id)), *next(answers)])

    found: list[OffloadError] = []

    async def run(endpoint: str) -> None:
        async with behind(endpoint) as fabric:
            for _ in range(3):
                found.append(await end_of(fabric.infer, ECHO, ALL))
                found.append(await listed(fabric, ALL))

    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        port = sock.bind_to_random_port("tcp://127.0.0.1")
        thread = threading.Thread(target=answer, args=(sock,))
        thread.start()
        try:
            asyncio.run(run(f"tcp://127.0.0.1:{port}"))
        finally:
            over.set()
            thread.join()
    for error in found:
        assert type(error) is Internal and error.message.startswith("the answer cannot be read: "), error


def test_without_a_broker_requests_end_in_time_and_a_closed_client_answers() -> None:
    async def run() -> None:
        async with behind("tcp://127.0.0.1:9", timeout=0.2) as fabric:
            (error,) = await failures(fabric, [(ECHO, ALL)])
            assert type(error) is Unavailable and "no broker answered" in error.message
            ended: list[object] = []
            fabric.infer(ECHO, ALL, ended.append)
            fabric.models(ALL, ended.append)
            fabric.close()
            assert [type(error) for error in ended] == [Unavailable, Unavailable]
            (error,) = await failures(fabric, [(ECHO, ALL)])
            assert type(error) is Unavailable and type(await listed(fabric, ALL)) is Unavailable

    asyncio.run(run())


def test_a_loop_that_counts_milliseconds_misses_no_deadline() -> None:
    async def run() -> None:
        async with behind("tcp://127.0.0.1:9") as fabric:
            for tick in range(20):
                (error,) = await failures(fabric, [(ECHO._replace(timeout=0.01 + tick * 0.00011), ALL)])
                assert type(error) is Unavailable

    uvloop.run(run())


def test_a_broker_that_refuses_the_gateway_does_not_refuse_its_clients(echo_fabric: Fabric, tmp_path: Path) -> None:
    for name in ("broker", "gateway"):
        new_keys(name, tmp_path)

    async def run() -> None:
        keys = (tmp_path / "gateway.key_secret", tmp_path / "broker.key")
        async with behind(echo_fabric.frontend, keys=keys) as fabric:
            for error in (*await failures(fabric, [(ECHO, ALL)]), await listed(fabric, ALL)):
                assert type(error) is Unavailable and "no broker lets this gateway in" in error.message

    asyncio.run(run())


def test_requests_go_to_the_next_broker(echo_fabric: Fabric) -> None:
    async def run() -> None:
        with running_broker() as first:  # it has no workers, so that requests wait there
            async with behind(first.frontend, echo_fabric.frontend) as fabric:
                ends = [asyncio.ensure_future(end_of(fabric.infer, ECHO, ALL)) for _ in range(5)]
                assert isinstance(await listed(fabric, ALL), Catalog)
                first.broker.kill()
                assert [type(answer) for answer in await asyncio.gather(*ends)] == [Outputs] * 5

    asyncio.run(run())
