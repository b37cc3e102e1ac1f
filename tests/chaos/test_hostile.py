"""A million malformed messages at each kind of socket during valid traffic: no crash, no leak, no effect."""

from __future__ import annotations

import os
import random
import time

import pytest
import zmq

from tests.support.hostile import SESSION, TENSORS, TO_BACKEND, TO_FRONTEND, FakePeer, MalformedSender, malformed
from tests.support.memory import MB, resident_bytes
from tests.support.processes import (
    eventually,
    faulty_workers,
    running_broker,
    running_workers,
    status,
    wait_for_workers,
    worker_pids,
)
from tests.support.traffic import traffic
from zmq_offload import Client
from zmq_offload.protocol import messages as wire

pytestmark = pytest.mark.chaos

MANY = int(os.environ.get("ZMQ_OFFLOAD_LIES", "1000000"))


@pytest.mark.parametrize("side", ["frontend", "backend"])
def test_a_million_malformed_messages_to_the_broker(side: str) -> None:
    with (
        running_broker() as broker,
        faulty_workers(broker.backend, "--processes", "2", "--drain", "2", slots=4) as supervisor,
    ):
        pids = wait_for_workers(broker.frontend, 2)
        pid = broker.broker.popen.pid
        with traffic(broker.frontend, clients=2) as load:
            half = None
            started = time.monotonic()
            endpoint, valid = (broker.frontend, TO_FRONTEND) if side == "frontend" else (broker.backend, TO_BACKEND)
            senders = [MalformedSender(endpoint, valid, seed, MANY // 2) for seed in (1, 2)]
            while any(sender.is_alive() for sender in senders):
                for sender in senders:
                    sender.join(0.2)
                if half is None and sum(sender.sent for sender in senders) > MANY // 2:
                    half = resident_bytes(pid)
            took, before = time.monotonic() - started, load.served
            eventually(lambda: load.served > before + 200)
            eventually(lambda: _all_taken_in(broker.frontend), timeout=120)
        end = resident_bytes(pid)
        sent = sum(sender.sent for sender in senders)
        now = status(broker.frontend)
        print(f"\n{sent} spoiled messages at the {side} in {took:.0f} s: {now['dropped']['malformed']} were none")
        print(f"memory at half {(half or 0) / MB:.1f} MB, at the end {end / MB:.1f} MB; valid traffic: {load}")
        assert not load.errors and not load.wrong and not load.overdue, (str(load), load.examples)
        assert half is not None and end - half < 16 * MB
        assert set(pids) <= set(worker_pids(broker.frontend)), "the honest workers are those that they were"
        assert not any("ended with code" in line for line in supervisor.seen())


def _all_taken_in(frontend: str) -> bool:
    before = status(frontend)["dropped"]["malformed"]
    time.sleep(0.5)
    return before == status(frontend)["dropped"]["malformed"]


def test_a_million_malformed_messages_to_a_worker() -> None:
    fake = FakePeer()
    chance = random.Random(5)
    try:
        with running_workers(fake.endpoint, "--executor", "echo", "--drain", "1") as supervisor:
            pid = int(supervisor.wait_for(r"worker 0 is process (\d+)")[1])
            peer, envelope, _ = fake.receive(20)
            assert isinstance(wire.decode(envelope, wire.FROM_WORKER), wire.Announce)
            dispatch = [wire.encode(wire.Dispatch(SESSION, 7, 1, "echo", 1, 10**7)), *TENSORS]
            valid = [dispatch, [wire.encode(wire.Revoke(SESSION, 7, 1))], [wire.encode(wire.Probe())]]
            half = 0
            started = time.monotonic()
            for count in range(MANY):
                fake.socket.send_multipart([peer, *malformed(valid, chance)])
                while fake.socket.poll(0):
                    fake.socket.recv()
                if count == MANY // 2:
                    half = resident_bytes(pid)
            honest = wire.encode(wire.Dispatch(SESSION, 10**6, 1, "echo", 1, 10**7))
            fake.socket.send_multipart([peer, honest, *TENSORS])
            message = None
            while not (isinstance(message, wire.Done) and message.id == 10**6):
                message = wire.decode(fake.receive()[1], wire.FROM_WORKER)
            took, end = time.monotonic() - started, resident_bytes(pid)
            print(f"\n{MANY} spoiled messages at a worker in {took:.0f} s; memory at half {half / MB:.1f} MB, ", end="")
            print(f"at the end {end / MB:.1f} MB")
            assert end - half < 16 * MB
            assert not any("ended with code" in line for line in supervisor.seen())
    finally:
        fake.close()


def test_a_million_malformed_messages_to_a_client() -> None:
    """A request now and then is answered honestly. Its answer shows that the client has read what came before, so that
    what still waits to be read does not count as the client's memory."""
    fake = FakePeer()
    chance = random.Random(6)
    every = 1000
    half = answered = number = 0
    started = time.monotonic()
    try:
        with Client(fake.endpoint, timeout=600) as client:
            for count in range(0, MANY, every):
                future = client.submit("echo", {"x": [1.0]})
                peer, request, payload = _next_request(fake, number)
                number = request.id
                other = request.id + MANY  # never sent, so that no malformed message can be its answer
                valid = [
                    [wire.encode(wire.Result(request.session, other, 1, 0, 0, 0)), *payload],
                    [wire.encode(wire.Pong(request.session, [other]))],
                    [wire.encode(wire.Error(request.session, other, "INTERNAL", "?"))],
                    [wire.encode(wire.Answer(request.session, other)), b"\x90"],
                ]
                for _ in range(every):
                    fake.socket.send_multipart([peer, *malformed(valid, chance)])
                # One of them may be a valid Pong with another limit of the broker's.
                fake.socket.send_multipart([peer, wire.encode(wire.Pong(request.session, []))])
                result = wire.encode(wire.Result(request.session, request.id, 1, 0, 0, 0))
                fake.socket.send_multipart([peer, result, *payload])
                assert future.result(60)["x"] == [1.0]
                answered += 1
                if count <= MANY // 2:
                    half = resident_bytes(os.getpid())
            took, end = time.monotonic() - started, resident_bytes(os.getpid())
            print(f"\n{MANY} spoiled messages at a client in {took:.0f} s; memory at half {half / MB:.1f} MB, ", end="")
            print(f"at the end {end / MB:.1f} MB; {answered} honest answers between them")
            assert end - half < 16 * MB
    finally:
        fake.close()


def _next_request(fake: FakePeer, last: int) -> tuple[bytes, wire.Request, list[bytes]]:
    """The next request of the client. It sends other messages, too, and `last` again if a message says that it got
    lost."""
    while True:
        peer, envelope, *payload = fake.receive()
        message = wire.decode(envelope, wire.FROM_CLIENT)
        if isinstance(message, wire.Request) and message.id > last:
            return peer, message, payload


def test_a_frame_over_the_limit_is_never_held() -> None:
    """libzmq closes the connection when it reads the frame's length."""
    with running_broker("--max-frame-bytes", "1000000") as broker, traffic(broker.frontend, clients=1, timeout=2):
        pid = broker.broker.popen.pid
        before = resident_bytes(pid)
        context = zmq.Context()
        with context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(broker.frontend)
            for _ in range(20):
                socket.send_multipart([TO_FRONTEND[0][0], TO_FRONTEND[0][1], bytes(50_000_000)])
                assert not socket.poll(100)
        context.term()
        print(f"\n20 messages of 50 MB over the limit of 1 MB: {(resident_bytes(pid) - before) / MB:.1f} MB more")
        assert resident_bytes(pid) - before < 20 * MB
