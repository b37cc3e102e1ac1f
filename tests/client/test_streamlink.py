"""The synchronous client's own connection, against sockets of libzmq."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from tests.support.processes import eventually
from zmq_offload import Client
from zmq_offload.client import driver
from zmq_offload.client.session import RetryPolicy, Send
from zmq_offload.client.streamlink import StreamLink
from zmq_offload.errors import OffloadError
from zmq_offload.protocol import messages as wire

SESSION = bytes(range(16))
SECONDS = 20.0
X = {"x": np.arange(3, dtype="f4")}


@contextmanager
def router(endpoint: str = "tcp://127.0.0.1:*", **options: int) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as bound:
        bound.linger = 0
        bound.rcvtimeo = round(SECONDS * 1000)
        for name, value in options.items():
            setattr(bound, name, value)
        bound.bind(endpoint)
        yield bound


def place_of(bound: zmq.Socket[bytes]) -> str:
    return bound.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def until(link: StreamLink, holds: Callable[[], object]) -> Any:
    """Drive a connection until something is true, and return it."""
    end = time.monotonic() + SECONDS
    while not (found := holds()):
        assert time.monotonic() < end
        link.wait(0.01)
    return found


def taken(bound: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        return bound.recv_multipart(zmq.DONTWAIT)
    except zmq.Again:
        return None


def ask(link: StreamLink, number: int, payload: Sequence[bytes | memoryview]) -> None:
    link.send(Send(wire.Request(SESSION, number, "echo", 0, 10**6, 0), payload))
    link.flush()


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:*", "ipc://{folder}/router", "ipc://@{folder}"])
def test_messages_go_to_a_router_and_come_back(endpoint: str, tmp_path: Path) -> None:
    large = bytes(range(256)) * 4096 * 16  # 16 MiB
    payload = (b"", b"a", b"b" * 256, memoryview(large), b"")
    with router(endpoint.format(folder=tmp_path)) as bound:
        link = StreamLink(place_of(bound), None, 1 << 27)
        ask(link, 1, payload)  # it waits until there is a connection
        peer, envelope, *frames = until(link, lambda: taken(bound))
        assert wire.decode(envelope, wire.FROM_CLIENT) == wire.Request(SESSION, 1, "echo", 0, 10**6, 0)
        assert tuple(frames) == payload
        assert not link.still_lent(1)
        bound.send_multipart([peer, b"not a message"])
        bound.send_multipart([peer, wire.encode(wire.Answer(SESSION, 7)), *payload])
        messages: list[Any] = []
        until(link, lambda: messages.extend(link.receive(9)) or messages)
        ((answer, received),) = messages
        assert answer == wire.Answer(SESSION, 7)
        assert [bytes(frame) for frame in received] == [bytes(frame) for frame in payload]
        link.close()
        assert not link.is_open


def test_memory_of_a_call_that_ends_before_it_was_sent_is_given_up_with_the_connection() -> None:
    with router(rcvhwm=1, rcvbuf=4096) as bound:
        link = StreamLink(place_of(bound), None, 1 << 30)
        until(link, lambda: link.is_idle and link.due)
        x = np.zeros(50_000_000, np.uint8)
        for number in (1, 2):
            ask(link, number, (b"head", x.data))
        lent = link.still_lent(2)
        assert lent
        before = link._line
        link.reclaim(lent)
        assert link._line is not before
        assert link.is_open
        assert not link.still_lent(1), "nothing is left of the old connection"
        link.close()


def test_a_request_that_waits_for_a_connection_is_forgotten_with_its_call() -> None:
    link = StreamLink("tcp://127.0.0.1:9", None, 1 << 20)  # nobody listens there
    for number in (1, 2, 3):
        ask(link, number, (b"head",))
    link.send(Send(wire.Cancel(SESSION, 1)))
    assert not link.still_lent(2)
    assert list(link._waiting) == [3]
    link.close()


def test_an_idle_client_answers_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_EVERY", 0.02)
    with router(heartbeat_ivl=50, heartbeat_timeout=300) as bound:
        monitor = bound.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        with Client(place_of(bound)):
            assert monitor.poll(SECONDS * 1000), "it connects before it is used"
            monitor.recv_multipart()
            assert not monitor.poll(800)
        assert monitor.poll(SECONDS * 1000)
        bound.disable_monitor()
        monitor.close()


def test_an_idle_client_notices_that_its_broker_has_ended_and_finds_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_EVERY", 0.02)
    with router() as bound:
        endpoint = place_of(bound)
        client = Client(endpoint)
        eventually(lambda: client._drivers.driver.connection._line.is_ready)  # type: ignore[attr-defined]
    eventually(lambda: not client._drivers.driver.connection._line.is_ready)  # type: ignore[attr-defined]
    with router(endpoint) as bound:
        eventually(lambda: client._drivers.driver.connection._line.is_ready)  # type: ignore[attr-defined]
        future = client.submit("echo", X)
        assert bound.poll(SECONDS * 1000)
        client.close()
        assert future.cancelled() or future.exception()
        messages = []
        while bound.poll(200):
            messages.append(wire.decode(bound.recv_multipart()[1], wire.FROM_CLIENT))
        assert [type(message) for message in messages] == [wire.Request, wire.Cancel], "the last Cancel arrives"


def test_a_connection_that_ended_while_nobody_looked_is_noticed_before_a_request_is_sent() -> None:
    """Else the request would be lost, and be sent again only after the next Ping."""
    patient = RetryPolicy(heartbeat=30.0, patience=60.0)
    with router() as bound:
        endpoint = place_of(bound)
        client = Client(endpoint, policy=patient)
        eventually(lambda: client._drivers.driver.connection._line.is_ready)  # type: ignore[attr-defined]
    time.sleep(0.15)
    with router(endpoint) as bound, client:
        client.submit("echo", X)
        assert bound.poll(10_000)


def test_the_session_knows_whether_there_is_a_connection() -> None:
    with router() as bound:
        link = StreamLink(place_of(bound), None, 1 << 20)
        assert not link.session.may_send
        until(link, lambda: link.session.may_send)
    until(link, lambda: not link.session.may_send)
    link.close()


def test_a_child_does_not_use_the_parents_connection() -> None:
    with router() as bound:
        link = StreamLink(place_of(bound), None, 1 << 20)
        until(link, lambda: link.is_idle and link.due)
        process = os.fork()
        if process == 0:
            link.forget()
            os._exit(int(link.is_open))
        assert os.waitpid(process, 0)[1] == 0
        ask(link, 1, (b"head",))
        assert until(link, lambda: taken(bound))
        link.close()


def test_a_client_without_a_broker_fails_at_the_deadline() -> None:
    with Client("tcp://127.0.0.1:9") as client:  # discard: nobody listens there
        began = time.monotonic()
        with pytest.raises(OffloadError, match="no broker answered"):
            client.infer("echo", X, timeout=0.2)
        assert time.monotonic() - began < 10
