"""The memory that clients of a process share: who has it, how long, and what is not shared."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.processes import Fabric, eventually, running_broker, running_workers
from zmq_offload import Client
from zmq_offload.client.arguments import check_arena_bytes
from zmq_offload.client.memory import Offer, _memory, own
from zmq_offload.errors import InvalidArgument
from zmq_offload.net.sharedmemory import segment
from zmq_offload.net.sharedmemory.references import SharedFrame, put_in
from zmq_offload.net.sharedmemory.sharing import EVERY, PROPERTY, SHARED_FROM, Sharing
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire

pytestmark = pytest.mark.skipif(not segment.SUPPORTED, reason="this system has no memory to share")

SIZE = 64 << 20
ENVELOPE = wire.encode(wire.Result(bytes(16), 1, 1, 0, 0, 0))
LONG = np.arange(SHARED_FROM, dtype=np.uint8).data
RESULT = wire.Result(bytes(16), 1, 1, 0, 0, 0)


def test_the_clients_of_a_process_have_one_memory_as_long_as_one_of_them_lives() -> None:
    first = _memory(SIZE)
    assert first is not None
    assert _memory(SIZE) is first
    assert _memory(SIZE // 2) is not first
    assert _memory(0) is None
    before = len(os.listdir("/proc/self/fd"))
    del first
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) < before


def test_long_frames_are_placed_and_lent_and_short_ones_stay() -> None:
    memory, peer = _memory(SIZE), Sharing(1 << 20)
    assert memory is not None
    short = b"s" * (SHARED_FROM - 1)
    placed = memory.placed([b"head", LONG, short])
    assert placed[1] == LONG
    assert placed[2] is short
    *sent, table = memory.lent([ENVELOPE, *placed])
    assert sent[1:] == [b"head", short]
    _, *frames = put_in([*sent, table], 1 << 30)
    assert [bytes(frame) for frame in peer.read(frames)] == [b"head", bytes(LONG), short]
    memory.tick(0.0)
    arena = memory._sharing.arena
    del placed, frames
    memory.tick(memory._tick_at + EVERY)
    assert arena.used == 0, "nothing is lent any more"


def test_a_full_arena_leaves_frames_where_they_are() -> None:
    memory = _memory(2 * SHARED_FROM)
    assert memory is not None
    placed = memory.placed([b"head", LONG, LONG, LONG])
    assert [frame is LONG for frame in placed[1:]] == [False, False, True]


def test_outputs_are_copies_that_may_be_written_to() -> None:
    memory, worker = _memory(SIZE), Sharing(SIZE)
    assert memory is not None
    _, *frames = put_in(worker.given([ENVELOPE, b"head", LONG]), 1 << 30)
    assert type(frames[1]) is SharedFrame
    message, (head, tensor) = own(memory, RESULT, frames)
    assert (message, head, bytes(tensor)) == (RESULT, b"head", bytes(LONG))
    assert not memoryview(tensor).readonly
    worker.tick()
    assert worker.arena.used == 0, "the worker has its memory back at once"
    lost, payload = own(memory, RESULT, frames)
    assert isinstance(lost, wire.Error)
    assert (lost.id, lost.code, payload) == (1, "UNAVAILABLE", ())
    assert own(None, RESULT, [b"head"]) == (RESULT, [b"head"])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connected:
        yield server, connected


def test_memory_is_offered_to_this_host_alone(pair: Any) -> None:
    connected = pair[1]
    assert PROPERTY in Offer(SIZE, lambda: connected).properties
    assert not Offer(0, lambda: connected).properties
    assert not Offer(SIZE, lambda: None).properties
    with Far() as far:
        offer = Offer(SIZE, lambda: far)
        assert not offer.properties
    assert offer.memory is None, "none is made for it"
    assert offer.proof({}, b"DEALER") is None
    assert not offer.is_proof(b"", b"DEALER")


class Far(socket.socket):
    """Connected to another host."""

    def getpeername(self) -> Any:
        return ("192.0.2.1", 5555)

    def getsockname(self) -> Any:
        return ("192.0.2.2", 50000)


def test_the_bytes_of_an_arena_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZMQ_OFFLOAD_ARENA_BYTES", raising=False)
    assert check_arena_bytes(None) == limits.ARENA_BYTES
    assert check_arena_bytes(0) == 0
    for wrong in (-1, 1.5, "1", 2**46):
        with pytest.raises(InvalidArgument, match=r"^arena_bytes .* is not a whole number of bytes below 2\*\*46"):
            check_arena_bytes(wrong)  # type: ignore[arg-type]
    monkeypatch.setenv("ZMQ_OFFLOAD_ARENA_BYTES", "4096")
    assert check_arena_bytes(None) == 4096
    monkeypatch.setenv("ZMQ_OFFLOAD_ARENA_BYTES", "many")
    with pytest.raises(InvalidArgument, match="ZMQ_OFFLOAD_ARENA_BYTES 'many' is not a whole number of bytes"):
        check_arena_bytes(None)


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with running_broker() as broker, running_workers(broker.backend, "--executor", "echo"):
        with Client(broker.frontend) as client:
            eventually(client.models)
        yield broker


@pytest.mark.parametrize("arena_bytes", [SIZE, SHARED_FROM, 0])
def test_calls_return_the_same_with_shared_memory_and_without(fabric: Fabric, arena_bytes: int) -> None:
    with Client(fabric.frontend, arena_bytes=arena_bytes) as client:
        kept = []
        for n in range(12):
            x = np.full(SHARED_FROM + 1000 * n, n, np.uint8)
            futures = [client.submit("echo", {"x": x, "y": x[:10], "z": x}) for _ in range(3)]
            kept.append([(n, future.result(20)) for future in futures])
            x[:] = 255
        link = client._drivers.driver.connection
        assert link._line.shares == (arena_bytes > 0)  # type: ignore[attr-defined]
        assert not link._placed  # type: ignore[attr-defined]
    for n, result in (pair for each in kept for pair in each):
        assert all((result[name] == n).all() for name in "xyz")
        result["x"][:] = 0
