"""The asyncio client's own connection, against sockets of libzmq, in both kinds of loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
import zmq

from tests.client.test_streamlink import place_of, router
from zmq_offload import AsyncClient
from zmq_offload.client.session import RetryPolicy
from zmq_offload.errors import OffloadError
from zmq_offload.net import transport
from zmq_offload.protocol import messages as wire

X = {"x": np.arange(3, dtype="f4")}
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
Run = Callable[[Coroutine[Any, Any, None]], None]


def answer(bound: zmq.Socket[bytes]) -> None:
    """Answer one request with its own tensors, and what else comes before."""
    while True:
        peer, envelope, *payload = bound.recv_multipart()
        message = wire.decode(envelope, wire.FROM_CLIENT)
        if isinstance(message, wire.Request):
            result = wire.Result(message.session, message.id, 1, 0, 0, 0)
            bound.send_multipart([peer, wire.encode(result), *payload])
            return
        if isinstance(message, wire.Ping):
            bound.send_multipart([peer, wire.encode(wire.Pong(message.session, [], 1 << 28))])


async def answered(bound: zmq.Socket[bytes], client: AsyncClient, x: Any = X) -> None:
    answering = asyncio.get_running_loop().run_in_executor(None, answer, bound)
    result = await client.infer("echo", x, timeout=15)
    await answering
    np.testing.assert_array_equal(result["x"], x["x"])


@LOOPS
@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:*", "ipc://{folder}/router"])
def test_calls_go_out_and_come_back_and_a_broker_that_comes_back_is_found(
    run: Run, endpoint: str, tmp_path: Path
) -> None:
    async def main() -> None:
        with router(endpoint.format(folder=tmp_path)) as bound:
            place = place_of(bound)
            client = AsyncClient(place, policy=RetryPolicy(heartbeat=0.1))
            await answered(bound, client)
            large = {"x": np.arange(5_000_000, dtype="u1")}
            await answered(bound, client, large)  # longer than the system's buffers
        async with client:
            with pytest.raises(OffloadError):
                await client.infer("echo", X, timeout=0.3)
            with router(place) as bound:
                await answered(bound, client)

    run(main())


@LOOPS
def test_a_client_may_be_made_long_before_its_loop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE", 0.05)
    with router() as bound:
        client = AsyncClient(place_of(bound))
        time.sleep(0.1)

        async def main() -> None:
            await answered(bound, client)
            await client.close()

        run(main())


@LOOPS
def test_memory_of_a_call_that_ends_before_it_was_sent_is_given_up_with_the_connection(run: Run) -> None:
    async def main() -> None:
        with router(rcvhwm=1, rcvbuf=4096) as bound:
            async with AsyncClient(place_of(bound), policy=RetryPolicy(heartbeat=0.05)) as client:
                # libzmq reads one or two messages of these, and no more.
                x = np.full(20_000_000, 7, np.uint8)
                asked = [asyncio.ensure_future(client.infer("echo", {"x": x}, timeout=0.5)) for _ in range(8)]
                peer, envelope = await asyncio.get_running_loop().run_in_executor(None, bound.recv_multipart)
                ping = wire.decode(envelope, wire.FROM_CLIENT)
                bound.send_multipart([peer, wire.encode(wire.Pong(ping.session, [], 1 << 28))])
                before = client._drivers.driver.connection.way
                ended = await asyncio.gather(*asked, return_exceptions=True)
                assert all(isinstance(one, OffloadError) for one in ended)
                assert client._drivers.driver.connection.way is not before

    run(main())


@LOOPS
def test_a_connection_that_ends_while_much_waits_for_it_is_followed_by_another(run: Run) -> None:
    async def main() -> None:
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        large = {"x": np.arange(1_000_000, dtype="u1")}
        with router() as second:
            with router(rcvhwm=1, rcvbuf=4096) as first:
                policy = RetryPolicy(heartbeat=0.1, patience=0.5, spread=False)
                client = AsyncClient([place_of(first), place_of(second)], policy=policy, arena_bytes=0)
                calls = [asyncio.ensure_future(client.infer("echo", large, timeout=15)) for _ in range(16)]
                while not client._drivers.driver.connection._writes:  # type: ignore[attr-defined]
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.05)  # the system's buffers fill
                assert client._drivers.driver.connection._writes  # type: ignore[attr-defined]
            async with client:
                for _ in calls:
                    await asyncio.to_thread(answer, second)
                for call in calls:
                    np.testing.assert_array_equal((await call)["x"], large["x"])
        assert not errors

    run(main())
