"""Bare pyzmq, to which the fabric is compared, in processes of its own.

`python -m tests.benchmarks.bare proxy` and `... minimal` print their two endpoints; `... echo BACKEND` and
`... credit-echo BACKEND` connect to the endpoint for workers.

- proxy: `zmq.proxy` of libzmq, which runs no Python for a message and can only do round-robin.
- minimal: a minimal broker in Python that chooses a worker: two ROUTERs, a msgpack envelope each way, credits, least
  outstanding. It has no deadlines, no liveness, no retries and no limits.
"""

from __future__ import annotations

import sys
from typing import Any

import msgpack
import zmq

SMALL = 32 * 1024
"""Up to this size a copy of a frame is cheaper than passing it on."""

Sock = zmq.Socket[bytes]


def send(socket: Sock, frames: list[Any]) -> None:
    for frame in frames[:-1]:
        socket.send(frame, zmq.SNDMORE)
    socket.send(frames[-1], copy=len(frames[-1]) <= SMALL)


def _bound(kind: int) -> Sock:
    socket: Sock = zmq.Context.instance().socket(kind)
    socket.sndhwm = socket.rcvhwm = 0
    socket.bind("tcp://127.0.0.1:0")
    return socket


def _ready(front: Sock, back: Sock) -> None:
    print("ready", *(s.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0") for s in (front, back)), flush=True)


def proxy() -> None:
    front, back = _bound(zmq.ROUTER), _bound(zmq.DEALER)
    _ready(front, back)
    zmq.proxy(front, back)


def _receive(socket: Sock) -> list[Any] | None:
    try:
        frames: list[Any] = [socket.recv(zmq.DONTWAIT), socket.recv()]
    except zmq.Again:
        return None
    while socket.getsockopt(zmq.RCVMORE):
        frames.append(socket.recv(copy=False))
    return frames


def minimal() -> None:
    """Clients send [envelope, tensor]; workers [b"", slots] first, then [client, envelope, tensor] each way."""
    front, back = _bound(zmq.ROUTER), _bound(zmq.ROUTER)
    _ready(front, back)
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    credit: dict[bytes, int] = {}
    waiting: list[list[Any]] = []
    while True:
        for socket, _ in poller.poll():
            while (frames := _receive(socket)) is not None:
                if socket is front:
                    client, envelope, *payload = frames
                    waiting.append([client, msgpack.packb([*msgpack.unpackb(envelope), 1]), *payload])
                elif frames[1]:
                    worker, client, envelope, *payload = frames
                    credit[worker] += 1
                    send(front, [client, msgpack.packb([*msgpack.unpackb(bytes(envelope)), 2]), *payload])
                else:
                    credit[frames[0]] = int(bytes(frames[2]))
        while waiting and credit:
            worker = max(credit, key=credit.__getitem__)
            if credit[worker] <= 0:
                break
            credit[worker] -= 1
            send(back, [worker, *waiting.pop(0)])


def echo(backend: str, credit: bool = False) -> None:
    socket: Sock = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(backend)
    if credit:
        socket.send_multipart([b"", b"32"])
    while True:
        frames: list[Any] = [socket.recv()]
        while socket.getsockopt(zmq.RCVMORE):
            frames.append(socket.recv(copy=False))
        send(socket, frames)


class BareClient:
    """A round trip with bare pyzmq. The minimal broker needs an `envelope`."""

    def __init__(self, endpoint: str, envelope: bool = False) -> None:
        self._context: zmq.Context[Sock] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(endpoint)
        self._envelope = envelope
        self._number = 0

    def send(self, data: Any) -> None:
        frames = [data]
        if self._envelope:
            self._number += 1
            frames.insert(0, msgpack.packb([bytes(16), self._number, "echo", 1, 10_000_000]))
        send(self._socket, frames)

    def receive(self) -> Any:
        if self._envelope:
            msgpack.unpackb(self._socket.recv())
        return self._socket.recv(copy=False)

    def __call__(self, data: Any) -> Any:
        self.send(data)
        return self.receive()

    def close(self) -> None:
        self._context.destroy(linger=0)


if __name__ == "__main__":
    kind, *more = sys.argv[1:]
    if kind == "proxy":
        proxy()
    elif kind == "minimal":
        minimal()
    else:
        echo(more[0], kind == "credit-echo")
