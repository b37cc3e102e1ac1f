"""Ctrl-C in a thread that is about to drive the socket: the client must not hang afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.processes import eventually
from zmq_offload import Client
from zmq_offload.client.lifecycle import Lifecycle, Turn
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
