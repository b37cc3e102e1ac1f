"""Ownership of memory: inputs belong to the caller again when a call ends; results always belong to the caller."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket as socketlib
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from tests.support.processes import Fabric, eventually, running_broker, running_workers
from zmq_offload import AsyncClient, Client
from zmq_offload.errors import Cancelled, OffloadError
from zmq_offload.net.transport import LENT

SIZES = [1000, 100_000, LENT - 1, LENT, 5_000_000]


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with running_broker() as broker, running_workers(broker.backend, "--executor", "echo"):
        with Client(broker.frontend) as client:
            eventually(client.models)
        yield broker


@pytest.fixture
def stuck() -> Iterator[zmq.Socket[bytes]]:
    """A broker that reads next to nothing from its connections."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.rcvhwm = 1
    router.rcvbuf = 4096
    router.bind("tcp://127.0.0.1:0")
    yield router
    context.destroy(linger=0)


def endpoint(socket: zmq.Socket[bytes]) -> str:
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


@pytest.mark.parametrize("size", SIZES)
def test_inputs_may_be_overwritten_when_infer_returned_and_results_stay(fabric: Fabric, size: int) -> None:
    x = np.zeros(size, np.uint8)
    with Client(fabric.frontend) as client:
        results = []
        for value in range(20):
            x[:] = value
            results.append(client.infer("echo", {"x": x, "last": x[:3]})["x"])
            x[:] = 255
    for value, result in enumerate(results):
        assert (result == value).all()
        assert not any(np.shares_memory(result, other) for other in results[:value])
        result[:] = 0  # the caller may write to it


@pytest.mark.parametrize("size", SIZES)
def test_outputs_are_received_into_the_callers_arrays(fabric: Fabric, size: int) -> None:
    x, place = np.arange(size, dtype=np.uint8), np.zeros(size, np.uint8)
    with Client(fabric.frontend) as client:
        result = client.infer("echo", {"x": x}, outputs={"x": place})
        assert result["x"] is place
        np.testing.assert_array_equal(place, x)
        client.infer("echo", {"x": np.zeros_like(x)})
        np.testing.assert_array_equal(place, x)


def tensors_taken_by(router: zmq.Socket[bytes]) -> list[bytes]:
    """Return everything that was sent to a stuck broker and was not dropped with its connection."""
    tensors = []
    while router.poll(300):
        tensors += [frame for frame in router.recv_multipart() if len(frame) >= LENT]
    return tensors


@pytest.mark.parametrize("asynchronous", [False, True])
def test_inputs_may_be_overwritten_when_infer_raised(stuck: zmq.Socket[bytes], asynchronous: bool) -> None:
    """Bytes that are sent later are those at the time of the call."""
    x = np.full(16_000_000, 7, np.uint8)

    async def call_all() -> None:
        async with AsyncClient(endpoint(stuck)) as client:
            for _ in range(3):
                with pytest.raises(OffloadError):
                    await client.infer("echo", {"x": x, "last": x[:3]}, timeout=0.3)
                x[:] = 99
                x[:] = 7
            with pytest.raises(OffloadError):
                await client.infer("echo", {"x": x}, timeout=0.3)
            x[:] = 99
            assert all(set(np.frombuffer(t, np.uint8)) == {7} for t in tensors_taken_by(stuck))

    if asynchronous:
        asyncio.run(call_all())
        return
    with Client(endpoint(stuck)) as client:
        for _ in range(3):
            with pytest.raises(OffloadError):
                client.infer("echo", {"x": x, "last": x[:3]}, timeout=0.3)
        x[:] = 99
        assert all(set(np.frombuffer(t, np.uint8)) == {7} for t in tensors_taken_by(stuck))


def test_nothing_holds_inputs_after_a_call_that_failed() -> None:
    deaf = socketlib.create_server(("127.0.0.1", 0))
    with deaf, Client(f"tcp://127.0.0.1:{deaf.getsockname()[1]}") as client:
        x = np.zeros(2 * LENT, np.uint8)
        alive = weakref.ref(x)
        with pytest.raises(OffloadError) as caught:
            client.infer("echo", {"x": x}, timeout=0.2)
        del x, caught
        gc.collect()
        assert alive() is None


def test_closing_frees_the_inputs_of_futures() -> None:
    with socketlib.create_server(("127.0.0.1", 0)) as deaf:
        client = Client(f"tcp://127.0.0.1:{deaf.getsockname()[1]}")
        x = np.zeros(2 * LENT, np.uint8)
        alive = weakref.ref(x)
        future = client.submit("echo", {"x": x}, timeout=20)
        client.close()
        with pytest.raises(Cancelled):
            future.result(5)
        del x, future
        gc.collect()
        assert alive() is None


def test_other_calls_survive_a_reconnect_that_reclaims_memory(fabric: Fabric) -> None:
    """A request that the broker reads too slowly fails at its deadline, and no other call with it."""
    x = np.zeros(40_000_000, np.uint8)
    with Client(fabric.frontend) as client:
        wanted = [client.submit("echo", {"x": np.full(1_000_000, n, np.uint8)}, timeout=20) for n in range(5)]
        for _ in range(3):
            with contextlib.suppress(OffloadError):
                client.infer("echo", {"x": x}, timeout=0.005)
            x[:] = 1
        for n, future in enumerate(wanted):
            assert (future.result(20)["x"] == n).all()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_freed_when_results_are_dropped(fabric: Fabric) -> None:
    size, count = 40_000_000, 8  # large enough for malloc to map it separately
    x = np.ones(size, np.uint8)
    with Client(fabric.frontend) as client:
        client.infer("echo", {"x": x})
        before, broker = resident(os.getpid()), resident(fabric.broker.popen.pid)
        results = [client.infer("echo", {"x": x}, timeout=30) for _ in range(count)]
        assert resident(os.getpid()) - before > (count - 1) * size
        results.clear()
        eventually(lambda: resident(os.getpid()) - before < size)
        eventually(lambda: resident(fabric.broker.popen.pid) - broker < size)


def test_a_thread_that_waits_for_a_future_replaces_the_pump_meanwhile(fabric: Fabric) -> None:
    x = np.arange(100, dtype=np.float32)
    ended = threading.Event()
    with Client(fabric.frontend) as client:
        for _ in range(50):
            first = client.submit("echo", {"x": x})
            client.submit("echo", {"x": x}).add_done_callback(lambda _: ended.set())
            np.testing.assert_array_equal(first.result(10)["x"], x)
            assert ended.wait(10), "nobody waits for it, so the pump must"
            ended.clear()


def test_threads_share_a_client(fabric: Fabric) -> None:
    def use(client: Client, number: int) -> None:
        for n in range(60):
            x = np.full(1 + 37 * n, number, np.int32)
            if n % 3:
                result = client.infer("echo", {"x": x})
            else:
                futures = [client.submit("echo", {"x": x}) for _ in range(4)]
                result, *_ = [future.result(10) for future in reversed(futures)]
            if not np.array_equal(result["x"], x):
                wrong.append(number)

    wrong: list[int] = []
    with Client(fabric.frontend) as client:
        threads = [threading.Thread(target=use, args=(client, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
