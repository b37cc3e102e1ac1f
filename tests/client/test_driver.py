"""Ctrl-C in a thread that is about to drive the socket: the client must not hang afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import numpy as np
import pytest

from tests.support.processes import eventually
from zmq_offload import Client
from zmq_offload.client.lifecycle import Lifecycle, Turn
from zmq_offload.client.session import Fail
from zmq_offload.errors import DeadlineExceeded, Unavailable

INPUTS = {"x": np.zeros(1, np.float32)}


@pytest.fixture
def client() -> Iterator[Client]:
    with Client("tcp://127.0.0.1:1") as client:  # nobody listens there
        yield client


@pytest.mark.parametrize("event", ["lead", "ask"])
def test_ctrl_c_while_the_socket_is_handed_over(client: Client, monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    driver = client._drivers.driver
    submitted = client.submit("m", INPUTS, timeout=1)
    eventually(lambda: driver._lifecycle.turn is Turn.PUMPED)
    step, interrupted = Lifecycle.step, threading.Event()

    def interrupt(self: Lifecycle, name: str) -> None:
        if name != "lead":
            step(self, name)
        if name == event and not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt
        if name == "lead":
            step(self, name)

    monkeypatch.setattr(Lifecycle, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.infer("m", INPUTS)
    # No thread waits for the other call, so only the pump can end it.
    ended = threading.Event()
    submitted.add_done_callback(lambda _: ended.set())
    assert ended.wait(30)
    with pytest.raises((DeadlineExceeded, Unavailable)):
        client.infer("m", INPUTS, timeout=0.1)


def test_a_result_that_is_waited_for_briefly_is_not_waited_for_longer_while_the_pump_is_in_a_callback(
    client: Client,
) -> None:
    """The pump cannot make way then."""
    driver = client._drivers.driver
    in_callback, go_on = threading.Event(), threading.Event()
    waits: list[float] = []

    class Socket:
        def __init__(self, real: Any) -> None:
            self._real = real

        def acquire(self, *args: Any, **options: Any) -> bool:
            waits.append(options.get("timeout", 0.0))
            return self._real.acquire(*args, **options)  # type: ignore[no-any-return]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def __enter__(self) -> Any:
            return self._real.__enter__()

        def __exit__(self, *of: object) -> None:
            self._real.__exit__(*of)

    first, second = (client.submit("m", INPUTS, timeout=20) for _ in range(2))
    eventually(lambda: driver._lifecycle.turn is Turn.PUMPED)
    first.add_done_callback(lambda _: (in_callback.set(), go_on.wait(20)))
    driver._exchange.outbox.append(Fail(first.number, Unavailable("for the test")))  # type: ignore[attr-defined]
    driver._delegate()
    assert in_callback.wait(20)
    driver._socket = Socket(driver._socket)  # type: ignore[assignment]
    with pytest.raises(futures.TimeoutError):
        second.result(0.004)
    go_on.set()
    assert waits
    assert max(waits) <= 0.004
