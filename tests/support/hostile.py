"""Peers that send malformed messages: to a broker, and as a broker to clients and workers."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import zmq

from tests.support.mutation import mutate, noise
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_body, encode_tensors

SESSION = b"s" * 16
X = np.arange(100.0)
TENSORS = [bytes(frame) for frame in encode_tensors({"x": X, "large": np.arange(1000.0)})]
MODELS = encode_body([{"name": "other", "version": 1, "inputs": [], "outputs": []}])
TO_FRONTEND = [
    [wire.encode(wire.Request(SESSION, 1, "echo", 0, 10**6, 0)), *TENSORS],
    [wire.encode(wire.Cancel(SESSION, 1))],
    [wire.encode(wire.Ping(SESSION, [1, 2]))],
    [wire.encode(wire.Query(SESSION, 3, "status"))],
]
TO_BACKEND = [
    [wire.encode(wire.Done(SESSION, 1, 1, 5)), *TENSORS],
    [wire.encode(wire.Failed(SESSION, 1, 1, "INTERNAL", "?"))],
    [wire.encode(wire.Heartbeat())],
    [wire.encode(wire.Goodbye())],
    [wire.encode(wire.Announce("liar", 1)), MODELS],
]


def malformed(valid: list[list[bytes]], chance: random.Random) -> list[bytes]:
    """One of the `valid` messages with faults, or random bytes."""
    return mutate(chance.choice(valid), chance) if chance.random() < 0.8 else noise(chance)


class MalformedSender(threading.Thread):
    """Sends `count` malformed messages to one endpoint, with a new connection for each thousand."""

    def __init__(self, endpoint: str, valid: list[list[bytes]], seed: int, count: int) -> None:
        super().__init__()
        self.sent = 0
        self._endpoint, self._valid, self._chance, self._count = endpoint, valid, random.Random(seed), count
        self.start()

    def run(self) -> None:
        context = zmq.Context()
        while self.sent < self._count:
            with context.socket(zmq.DEALER) as socket:
                socket.linger = 10_000  # milliseconds: everything sent must arrive
                socket.sndtimeo = 10_000
                socket.connect(self._endpoint)
                for _ in range(1000):
                    socket.send_multipart(malformed(self._valid, self._chance))
                    self.sent += 1
                    while socket.poll(0):
                        socket.recv_multipart()
        context.term()


class FakePeer:
    """A ROUTER socket in the place of a broker; the test decides what it answers."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.sndhwm = 1000
        self.socket.router_mandatory = True  # so that a full pipe blocks instead of dropping
        self.endpoint = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"

    def receive(self, timeout: float = 10) -> list[bytes]:
        assert self.socket.poll(timeout * 1000)
        return self.socket.recv_multipart()

    def close(self) -> None:
        self.socket.close()
        self.context.term()
