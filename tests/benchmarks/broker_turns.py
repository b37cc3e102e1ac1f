"""What a request costs in the broker alone: `python -m tests.benchmarks.broker_turns`.

A broker's core with a worker that answers at once, and then a whole broker with plain sockets as its peers, all in one
thread. Only the broker's own time counts: microseconds of one request, there and back, as medians of turns, and how
many objects that the garbage collector counts a request leaves while it is under way. `--depth` requests are under way.
"""

from __future__ import annotations

import argparse
import gc
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

from broker.config import parse
from broker.core import Core
from broker.events import FromClient, FromWorker
from broker.liveness import LivenessPolicy
from broker.loop import Broker
from zmq_offload.net import zmtp
from zmq_offload.net.stream import Stream
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_body

SESSION = b"s" * wire.SESSION_BYTES
MODEL = {"name": "echo", "version": 1, "inputs": [], "outputs": []}
clock = time.perf_counter


def _requests(first: int, many: int) -> Iterator[wire.Request]:
    for number in range(first, first + many):
        yield wire.Request(SESSION, number, "echo", 0, 10_000_000, 0)


def core_turn(core: Core, first: int, depth: int, payload: Sequence[bytes]) -> float:
    """Seconds of `depth` requests, which come at once. Those that workers have are answered together."""
    spent = 0.0
    events: list[FromClient] | list[FromWorker] = [
        FromClient(b"client", message, payload) for message in _requests(first, depth)
    ]
    now = time.monotonic()
    while events:
        began = clock()
        for event in events:
            core.decide(event, now)
        actions = core.take()
        spent += clock() - began
        events = [
            FromWorker(b"worker", wire.Done(*action.message[:3], 100), payload)
            for action in actions
            if type(action.message) is wire.Dispatch
        ]
    return spent


def core_times(turns: int, depth: int, size: int, slots: int) -> list[float]:
    core = Core(LivenessPolicy(), time.monotonic())
    body = [encode_body([MODEL])]
    core.handle(FromWorker(b"worker", wire.Announce("w", slots), body), time.monotonic())
    payload = [b"header", bytes(size)]
    return [core_turn(core, turn * depth, depth, payload) / depth for turn in range(turns)]


class Far:
    """The other end of a connection of the broker, on a plain socket."""

    def __init__(self, endpoint: str, broker: Broker, ports: Any) -> None:
        host, port = endpoint.removeprefix("tcp://").split(":")
        peer = zmtp.Peer(1 << 30, 64, 1e9)
        self.stream = Stream(socket.create_connection((host, int(port))), peer, most=1 << 20)
        self.stream.flush()
        while not peer.is_ready:
            broker.handle(ports.wait(0))
            self.stream.receive()

    def send(self, messages: Sequence[Any], payload: Sequence[bytes]) -> None:
        for message in messages:
            self.stream.put([wire.encode(message), *payload])
        assert self.stream.flush()

    def receive(self, many: int, kind: Any) -> list[Any]:
        """So many messages of a kind. Others are dropped."""
        found: list[Any] = []
        while len(found) < many:
            messages = [
                wire.decode(bytes(frames[0]), wire.TO_WORKER | wire.TO_CLIENT) for frames in self.stream.receive()
            ]
            found += [message for message in messages if type(message) is kind]
        return found


def _serve(broker: Broker, ports: Any, many: int) -> float:
    """Seconds in which the broker handles that many messages."""
    spent = 0.0
    while many > 0:
        began = clock()
        events = ports.wait(0)
        broker.handle(events)
        spent += clock() - began
        many -= len(events)
    return spent


def broker_times(turns: int, depth: int, size: int) -> list[float]:
    options = ["--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0"]
    broker = Broker(parse(options))
    ports = broker._ports
    client, worker = (Far(endpoint, broker, ports) for endpoint in (broker.frontend, broker.backend))
    worker.send([wire.Announce("w", depth)], [encode_body([MODEL])])
    _serve(broker, ports, 1)
    worker.receive(1, wire.Probe)
    payload = [b"header" * 8, bytes(size)]
    times = []
    for turn in range(turns):
        client.send(list(_requests(turn * depth, depth)), payload)
        spent = _serve(broker, ports, depth)
        dispatched = worker.receive(depth, wire.Dispatch)
        worker.send([wire.Done(*message[:3], 100) for message in dispatched], payload)
        spent += _serve(broker, ports, depth)
        client.receive(depth, wire.Result)
        times.append(spent / depth)
    broker.close()
    return times


def objects(depth: int) -> float:
    """Objects that the garbage collector counts, for each request that is under way in the core."""
    core = Core(LivenessPolicy(), time.monotonic())
    core.handle(FromWorker(b"worker", wire.Announce("w", depth), [encode_body([MODEL])]), time.monotonic())
    events = [FromClient(b"client", message, [b"header"]) for message in _requests(0, depth)]
    gc.collect()
    gc.disable()
    before = gc.get_count()[0]
    for event in events:
        core.handle(event, time.monotonic())
    after = gc.get_count()[0]
    gc.enable()
    return (after - before) / depth


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.broker_turns", description=__doc__)
    parser.add_argument("--turns", type=int, default=1000, help="turns of `depth` requests [1000]")
    parser.add_argument("--depth", type=int, default=16, help="requests under way [16]")
    parser.add_argument("--bytes", type=int, default=1024, help="bytes of a tensor [1024]")
    given = parser.parse_args()
    for name, times in (
        ("core", core_times(given.turns * 4, given.depth, given.bytes, given.depth)),
        ("core, all but one queued", core_times(given.turns, given.depth, given.bytes, 1)),
        ("broker", broker_times(given.turns, given.depth, given.bytes)),
    ):
        low, middle, high = (value * 1e6 for value in statistics.quantiles(times, n=4))
        print(f"{name}: {middle:.2f} us a request ({low:.2f} to {high:.2f})")
    print(f"objects of a request in the core: {objects(100):.1f}")


if __name__ == "__main__":
    main()
