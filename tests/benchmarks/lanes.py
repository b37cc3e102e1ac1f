"""Compares ways to send small messages beside large ones to the same process: `python -m tests.benchmarks.lanes`.

One process sends messages of 16 MB without a pause, and small ones beside them, which another answers at once:

- one connection, whole messages;
- one connection, the large ones in pieces (see `zmq_offload.net.pieces`);
- two connections, one for the large ones.

Over loopback, and over an emulated link, the ways take turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import select
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from zmq_offload.net.stream import Stream
from zmq_offload.net.zmtp import Peer
from zmq_offload.testing.link import Link

LARGE = 16 << 20
PAUSE = 0.005
WAYS = ("whole", "pieces", "two connections")


def _turn(streams: Sequence[Stream], seconds: float) -> list[tuple[Stream, list[Any]]]:
    """Read and write what is ready. Returns the messages that came, the small ones of the first connection first."""
    poll = select.poll()
    for each in streams:
        poll.register(each.socket, select.POLLIN | (select.POLLOUT if each.blocked else 0))
    found = []
    ready = dict(poll.poll(max(0.0, seconds) * 1000))
    for each in streams:
        happened = ready.get(each.fileno(), 0)
        if happened & select.POLLOUT:
            each.flush()
        if happened & ~select.POLLOUT:
            found += [(each, message) for message in each.receive()]
    return found


def _answer(port: int, ready: Any) -> None:
    with socket.create_server(("127.0.0.1", port)) as listening:
        ready.put(listening.getsockname()[1])
        streams: list[Stream] = []
        while True:
            accepted, _ = listening.accept()
            streams.append(Stream(accepted, Peer(1 << 28, 8, 1.0, b"ROUTER")))
            streams[-1].flush()
            if accepted.fileno() and len(streams) % 2 == 0:
                _serve(streams[-2:])


def _serve(streams: Sequence[Stream]) -> None:
    try:
        while True:
            for stream, message in _turn(streams, 1.0):
                stream.put([message[0], b""])
                stream.flush()
    except OSError:
        for stream in streams:
            stream.close()


def measure(way: str, host: str, port: int, seconds: float) -> tuple[list[float], float]:
    """Round trips of the small messages, and how many large ones were sent a second."""
    streams = []
    for _ in range(2):
        streams.append(Stream(socket.create_connection((host, port)), Peer(1 << 28, 8, 1.0)))
        streams[-1].flush()
    while not all(stream.peer.is_ready for stream in streams):
        _turn(streams, 1.0)
    small = streams[0]
    large = streams[1 if way == "two connections" else 0]
    for stream in streams:
        stream.peer.takes_pieces &= way == "pieces"
    body = memoryview(np.zeros(LARGE, np.uint8))
    times: list[float] = []
    began = due = time.perf_counter()
    end, sent, count = began + seconds, 0.0, 0
    for _ in range(2):  # so that there is always one on its way
        large.put([b"large", body])
    large.flush()
    while (now := time.perf_counter()) < end:
        if now >= due and not sent:
            sent = now
            small.put([b"small", b"x" * 1000])
            small.flush()
        for _, message in _turn(streams, (due - now) if not sent else end - now):
            if message[0] == b"small":
                times.append(time.perf_counter() - sent)
                sent, due = 0.0, time.perf_counter() + PAUSE
            else:
                count += 1
                large.put([b"large", body])
                large.flush()
    for stream in streams:
        stream.close()
    return times, count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.lanes", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--bandwidth", default="1Gbit", help="of the emulated link")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=_answer, args=(0, ready), daemon=True)
    process.start()
    port = ready.get()
    print("| | way | p50 | p90 | p99 | large ones a second |\n|---|---|---|---|---|---|")
    with ExitStack() as stack:
        stack.callback(process.terminate)
        link = stack.enter_context(Link(f"tcp://127.0.0.1:{port}", bandwidth=args.bandwidth, rtt="1ms"))
        for name, at in (("loopback", port), (args.bandwidth, int(link.endpoint.rpartition(":")[2]))):
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            rates: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(args.turns):
                for way in WAYS:
                    found, rate = measure(way, "127.0.0.1", at, args.seconds)
                    times[way] += found
                    rates[way].append(rate)
            for way in WAYS:
                p50, p90, p99 = (np.quantile(times[way], q) * 1e3 for q in (0.5, 0.9, 0.99))
                rate = statistics.median(rates[way])
                print(f"| {name} | {way} | {p50:.2f} ms | {p90:.2f} ms | {p99:.2f} ms | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    main()
