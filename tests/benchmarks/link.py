"""Checks that the emulated link delivers what it is told: `python -m tests.benchmarks.link`.

For each bandwidth and round trip: the median round trip of single bytes on an idle connection, and the rate of bytes
while both directions are full at once. Plain sockets are measured, and nothing is subtracted for the machine itself.
The exit code is 1 if a figure is wrong by more than `--within`.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from zmq_offload.common.units import bandwidth, duration
from zmq_offload.testing.link import Link

BANDWIDTHS = ("5Mbit", "25Mbit", "50Mbit", "100Mbit", "300Mbit")
RTTS = ("2ms", "10ms", "50ms")


@contextmanager
def through(link_options: dict[str, str]) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection over a link."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        with Link(f"tcp://{host}:{port}", **link_options) as link:  # type: ignore[arg-type]
            near = socket.create_connection(("127.0.0.1", int(link.endpoint.rpartition(":")[2])))
            far, _ = server.accept()
            with near, far:
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield near, far


def round_trip(near: socket.socket, far: socket.socket, seconds: float) -> float:
    """The median round trip, in seconds, of at least 15 single bytes."""

    def echo() -> None:
        while (byte := far.recv(1)) != b"e":
            far.sendall(byte)

    thread = threading.Thread(target=echo)
    thread.start()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 15:
        began = time.perf_counter()
        near.sendall(b"x")
        near.recv(1)
        times.append(time.perf_counter() - began)
    near.sendall(b"e")
    thread.join()
    return statistics.median(times)


def rate(ends: tuple[socket.socket, socket.socket], bits: float, seconds: float) -> tuple[float, float]:
    """Bits per second in both directions at once, from the arrival of the first bytes to that of the last."""
    size = max(int(bits * seconds / 8), 1 << 16)
    rates = [0.0, 0.0]

    def drain(end: socket.socket, at: int) -> None:
        got, began, first = 0, 0.0, 0
        while got < size:
            got += len(end.recv(1 << 16))
            if not first:
                began, first = time.perf_counter(), got
        rates[at] = (got - first) * 8 / (time.perf_counter() - began)

    near, far = ends
    threads = [threading.Thread(target=drain, args=(far, 0)), threading.Thread(target=drain, args=(near, 1))]
    threads += [threading.Thread(target=end.sendall, args=(bytes(size),)) for end in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rates[0], rates[1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.link", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    parser.add_argument("--within", type=float, default=0.05, help="how much a figure may be wrong, as a share")
    args = parser.parse_args()
    worst = 0.0
    print("| bandwidth | rtt | round trip | off | rate there | rate back | off |\n|---|---|---|---|---|---|---|")
    for told_rate in BANDWIDTHS:
        for told_rtt in RTTS:
            with through({"bandwidth": told_rate, "rtt": told_rtt}) as ends:
                trip = round_trip(*ends, args.seconds)
                rates = rate(ends, bandwidth(told_rate), args.seconds)
            slow = trip / duration(told_rtt) - 1
            off = max((r / bandwidth(told_rate) - 1 for r in rates), key=abs)
            worst = max(worst, abs(slow), abs(off))
            cells = [told_rate, told_rtt, f"{trip * 1e3:.2f} ms", f"{slow:+.1%}"]
            cells += [f"{r / 1e6:.2f} Mbit" for r in rates] + [f"{off:+.1%}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nworst: {worst:.1%} off")
    return int(worst > args.within)


if __name__ == "__main__":
    sys.exit(main())
