"""Long tensors pass through shared memory between real processes: a client like a gateway's, a broker and workers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.processes import Fabric, faulty_workers, running, running_broker, wait_for_workers
from zmq_offload import Client
from zmq_offload.client.aiocalls import LinkCalls
from zmq_offload.client.gatewaylink import GatewayLink
from zmq_offload.client.session import RetryPolicy, Send
from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Call, Outputs
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.fabric import BrokerFabric
from zmq_offload.net.grants import Grant
from zmq_offload.net.sharedmemory import segment
from zmq_offload.net.sharedmemory.readers import _Tensor
from zmq_offload.net.sharedmemory.references import Reference, SharedFrame
from zmq_offload.net.sharedmemory.sharing import SHARED_FROM, Sharing
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.packed import pack

pytestmark = pytest.mark.skipif(not segment.SUPPORTED, reason="this system has no memory to share")

ALL = Grant("all")
MEGABYTE = 1 << 20
X = np.frombuffer(os.urandom(MEGABYTE), "u1")


class Caller:
    """Calls `echo` through a link like a gateway's, and checks the answers."""

    def __init__(self, fabric: BrokerFabric, link: GatewayLink, sharing: Sharing | None) -> None:
        self._fabric = fabric
        self.link = link
        self.sharing = sharing
        self.ended: Counter[str] = Counter()

    async def infer(self, tensors: dict[str, Any], timeout: float = 10.0) -> Outputs | OffloadError:
        ended: asyncio.Future[Outputs | OffloadError] = asyncio.get_running_loop().create_future()
        self._fabric.infer(Call("echo", None, pack(tensors), timeout), ALL, ended.set_result)
        return await ended

    async def load(self, calls: int, timeout: float = 10.0) -> None:
        """Call again and again, each time with other bytes."""
        for _ in range(calls):
            x = X ^ np.uint8(sum(self.ended.values()) % 256)
            outcome = await self.infer({"x": x}, timeout)
            if isinstance(outcome, Outputs):
                self.ended["served" if np.array_equal(outcome.tensors["x"], x) else "wrong"] += 1
            else:
                self.ended[outcome.code.value] += 1
            del outcome

    def used(self) -> int:
        """Slots of the client's memory that are still used."""
        assert self.sharing is not None
        self.sharing.tick()
        return self.sharing.arena.used


@asynccontextmanager
async def calling(*brokers: str, size: int = 64 * MEGABYTE) -> AsyncIterator[Caller]:
    """With size 0 it does not share."""
    sharing = Sharing(size) if size else None
    link = GatewayLink(brokers, RetryPolicy(heartbeat=0.1, patience=0.5), 1 << 28, sharing)
    fabric = BrokerFabric(LinkCalls(link), 10.0, ModelControl(allowed=False))
    try:
        if sharing is not None:
            await until(lambda: link._line.shares)
        yield Caller(fabric, link, sharing)
    finally:
        fabric.close()


async def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, f"{holds} did not come true within 20 s"
        await asyncio.sleep(0.01)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def is_shared(outputs: Outputs | OffloadError) -> bool:
    """Whether outputs lie in the memory of their worker."""
    assert isinstance(outputs, Outputs), outputs
    return any(type(getattr(frame, "obj", None)) is _Tensor for frame in outputs.tensors.frames)


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with running_broker() as broker, faulty_workers(broker.backend, "--processes", "2", slots=8):
        wait_for_workers(broker.frontend, 2)
        yield broker


@pytest.fixture(scope="module")
def bytes_only() -> Iterator[Fabric]:
    """With a worker that does not share."""
    with running_broker() as broker, faulty_workers(broker.backend, "--arena-bytes", "0"):
        wait_for_workers(broker.frontend, 1)
        yield broker


_tensors = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(
        lambda nbytes, seed: np.random.default_rng(seed).integers(0, 256, nbytes, "u1"),
        st.one_of(st.integers(0, 300), st.integers(SHARED_FROM - 2, SHARED_FROM + 2), st.integers(0, 3 * SHARED_FROM)),
        st.integers(0, 9),
    ),
)


def test_answers_through_shared_memory_are_those_through_bytes(fabric: Fabric) -> None:
    async def test() -> None:
        async with calling(fabric.frontend) as one, calling(fabric.frontend, size=0) as other:

            async def compare(tensors: dict[str, Any]) -> None:
                shared, inline = await asyncio.gather(one.infer(tensors), other.infer(tensors))
                assert isinstance(inline, Outputs) and not is_shared(inline)
                assert is_shared(shared) == any(len(x) >= SHARED_FROM for x in tensors.values())
                for outputs in (shared, inline):
                    assert isinstance(outputs, Outputs) and list(outputs.tensors) == list(tensors)
                    for name, x in tensors.items():
                        np.testing.assert_array_equal(outputs.tensors[name], x)

            loop = asyncio.get_running_loop()

            @settings(max_examples=25, deadline=None)
            @given(_tensors)
            def each(tensors: dict[str, Any]) -> None:
                asyncio.run_coroutine_threadsafe(compare(tensors), loop).result()

            await asyncio.to_thread(each)
            await until(lambda: not one.used())

    run(test())


def test_clients_of_libzmq_get_bytes_and_full_arenas_send_bytes(fabric: Fabric) -> None:
    async def test() -> None:
        async with calling(fabric.frontend) as one, calling(fabric.frontend, size=SHARED_FROM) as small:
            with Client(fabric.frontend) as client:
                for _ in range(3):
                    outputs, shared, also = await asyncio.gather(
                        asyncio.to_thread(client.infer, "echo", {"x": X}), one.infer({"x": X}), small.infer({"x": X})
                    )
                    np.testing.assert_array_equal(outputs["x"], X)
                    assert is_shared(shared) and is_shared(also)  # as each worker has room for its outputs

    run(test())


def test_a_worker_that_does_not_share_serves_a_client_that_does(bytes_only: Fabric) -> None:
    async def test() -> None:
        async with calling(bytes_only.frontend) as one:
            outputs = await one.infer({"x": X})
            assert not is_shared(outputs)
            assert isinstance(outputs, Outputs)
            np.testing.assert_array_equal(outputs.tensors["x"], X)
            await until(lambda: not one.used())

    run(test())


ELSEWHERE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def test_a_worker_in_another_pid_namespace_gets_bytes() -> None:
    tried = shutil.which("unshare") and subprocess.run([*ELSEWHERE, "true"], capture_output=True, check=False)
    if not tried or tried.returncode:
        pytest.skip("this user may not make a pid namespace")
    with running_broker() as broker:
        command = [*ELSEWHERE, sys.executable, "-m", "workers", "--executor", "echo", "--broker", broker.backend]
        with running("-c", f"import os; os.execvp('unshare', {command})") as worker:
            assert worker.wait_for("connected to broker .*$")[0].endswith(broker.backend)

            async def test() -> None:
                async with calling(broker.frontend) as one:
                    outputs = await one.infer({"x": X})
                    assert isinstance(outputs, Outputs) and not is_shared(outputs)
                    np.testing.assert_array_equal(outputs.tensors["x"], X)

            run(test())


@pytest.mark.parametrize("which", ["fabric", "bytes_only"])
def test_a_reference_to_nothing_is_an_error(which: str, request: pytest.FixtureRequest) -> None:
    async def test() -> None:
        link = GatewayLink(request.getfixturevalue(which).frontend, None, 1 << 28, Sharing(MEGABYTE))
        link.watch(asyncio.get_running_loop(), asyncio.Event().set)
        await until(lambda: link._line.shares)
        nowhere = SharedFrame(Reference(os.getpid(), 1, bytes(16), 0, 0, 0, MEGABYTE))
        link.send(Send(wire.Request(bytes(16), 1, "echo", 0, 10**7, 0), [b"head", nowhere]))  # type: ignore[list-item]
        link.flush()
        await until(link.waiting)
        ((message, _),) = link.receive(9)
        link.close()
        assert isinstance(message, wire.Error) and message[1:3] == (1, "UNAVAILABLE"), message
        assert "the inputs are lost" in message.text

    run(test())


ENDLESS = """
import asyncio, sys
from tests.integration.test_shared_memory import calling

async def test():
    async with calling(sys.argv[1]) as one:
        await one.load(20)
        print("loading", flush=True)
        await asyncio.gather(*[one.load(10**9) for _ in range(8)])

asyncio.run(test())
"""


def test_a_client_is_killed_under_load_and_others_are_served(fabric: Fabric) -> None:
    async def test() -> None:
        async with calling(fabric.frontend) as one:
            with running("-c", ENDLESS, fabric.frontend) as client:
                await asyncio.to_thread(client.wait_for, "loading")
                load = asyncio.gather(*[one.load(10) for _ in range(4)])
                await until(lambda: one.ended["served"])
                client.end(signal.SIGKILL)
                await load
                await one.load(10)
            assert one.ended == {"served": 50}
            await until(lambda: not one.used())

    run(test())


def test_what_ends_under_load_takes_no_memory_along() -> None:
    """Workers, then the broker, are killed while tensors are under way."""
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker())
        workers = stack.enter_context(faulty_workers(broker.backend, "--processes", "2", "--drain", "2", slots=8))
        workers.wait_for("connected to broker .*, sharing memory")
        pids = wait_for_workers(broker.frontend, 2)

        async def test() -> None:
            async with calling(broker.frontend) as one:
                load = asyncio.gather(*[one.load(30) for _ in range(8)])
                await until(lambda: one.ended["served"] > 40)
                os.kill(pids[0], signal.SIGKILL)
                await until(lambda: one.ended["served"] > 100)
                broker.broker.end(signal.SIGKILL)
                stack.enter_context(running_broker(frontend=broker.frontend, backend=broker.backend))
                await load
                assert not one.ended["wrong"]
                assert set(one.ended) <= {"served", "wrong", "UNAVAILABLE"}, one.ended
                assert one.ended["served"] > 150
                await until(lambda: not one.used())

        run(test())
