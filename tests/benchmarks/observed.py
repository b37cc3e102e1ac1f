"""What it costs to be looked at: `python -m tests.benchmarks.observed`.

Two brokers with an echo worker each, and two gateways with a broker in their process: one of each is observed, the
other has everything off. Observed means: metrics that are scraped every second, traces of 1 % of the requests, which go
to a collector in a process of its own, and a page that is open in one browser. `--with` picks some of the three; with
`--with nothing` both sides are the same, which shows how well this measures. Both sides are loaded in turns, so that
whatever else the machine does falls on both alike. Two processes of the same program differ by some percent for as long
as they live, by where their memory lies, so each round starts them anew, the observed side first in every second one.
Prints the requests per second and the CPU time of a request in the broker's or gateway's process, as medians of the
turns with their quartiles, and how much they differ: the median of the rounds, and in brackets the least and the most.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import numpy as np

from tests.benchmarks.fabric import until_served
from tests.benchmarks.measure import cpu_seconds
from tests.support.processes import Process, running, running_broker, running_gateway_with_broker, running_workers
from zmq_offload import Client

KINDS = ("metrics", "traces", "page")
TURN = 2.0
"""Seconds; a turn with metrics has two scrapes."""

WATCHER = """
import sys, threading, time, urllib.request

def scrape(url):
    while True:
        with urllib.request.urlopen(url, timeout=10) as answer:
            answer.read()
        time.sleep(1.0)

def look(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        while answer.readline():
            pass

for watch, url in zip((scrape, look), sys.argv[1:]):
    if url:
        threading.Thread(target=watch, args=(url,)).start()
"""
"""Scrapes the metrics and keeps the page open, in a process of its own: it would slow that of the load down, and a
server that gets fewer requests at a time has more work with each."""

COLLECTOR = """
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("listens", server.server_port, flush=True)
server.serve_forever()
"""
"""Takes spans and drops them."""

Load = Callable[[float], int]
"""Makes requests for so many seconds and returns their number."""


@dataclass
class Side:
    """A server under load, and what its turns came to."""

    load: Load
    process: Process
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def turn(self, seconds: float) -> None:
        began, before = time.perf_counter(), cpu_seconds(self.process.popen.pid)
        count = self.load(seconds)
        self.rates.append(count / (time.perf_counter() - began))
        self.cpu.append((cpu_seconds(self.process.popen.pid) - before) / count)


@contextmanager
def _watched(process: Process, options: Sequence[str], page: str | None) -> Iterator[None]:
    """Somebody looks at what is on."""
    metrics = ""
    if "--metrics" in options:
        metrics = "http://" + process.wait_for(r"metrics=(\S+)")[1] + "/metrics"
    if not metrics and not page:
        yield
        return
    with running("-c", WATCHER, metrics, page or ""):
        yield


@contextmanager
def _collector(kinds: Sequence[str]) -> Iterator[list[str]]:
    """The options for what is observed, but for the page; with a collector, if there are traces."""
    options = ["--metrics", "127.0.0.1:0"] if "metrics" in kinds else []
    if "traces" not in kinds:
        yield options
        return
    with running("-c", COLLECTOR) as process:
        port = process.wait_for(r"listens (\d+)")[1]
        yield [*options, "--traces", f"http://127.0.0.1:{port}", "--trace-share", "0.01"]


@contextmanager
def _page(frontend: str, wanted: bool) -> Iterator[str | None]:
    """The events of a page of its own process."""
    if not wanted:
        yield None
        return
    with running("-m", "zmq_offload", "dashboard", "--broker", frontend, "--http", "127.0.0.1:0") as process:
        address = process.wait_for(r"http=(\S+)")[1]
        yield f"http://{address}/dashboard/events"


@contextmanager
def broker(size: int, depth: int, kinds: Sequence[str]) -> Iterator[Side]:
    """A broker with a client that has `depth` requests under way."""
    x = np.zeros(size, np.uint8)
    with (
        _collector(kinds) as options,
        running_broker(*options) as fabric,
        running_workers(fabric.backend, "--executor", "echo"),
        Client(fabric.frontend) as client,
        _page(fabric.frontend, "page" in kinds) as page,
    ):
        until_served(client, "echo")

        def load(seconds: float) -> int:
            count, end = 0, time.perf_counter() + seconds
            waiting = deque(client.submit("echo", {"x": x}) for _ in range(depth))
            while waiting:
                waiting.popleft().result()
                count += 1
                if time.perf_counter() < end:
                    waiting.append(client.submit("echo", {"x": x}))
            return count

        with _watched(fabric.broker, options, page):
            yield Side(load, fabric.broker)


@contextmanager
def gateway(size: int, depth: int, kinds: Sequence[str]) -> Iterator[Side]:
    """A gateway with a broker, and `depth` connections over HTTP with one request at a time each."""
    given = {"name": "x", "datatype": "UINT8", "shape": [size], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    body, headers = head + bytes(size), {"Inference-Header-Content-Length": str(len(head))}

    def call_until(connection: http.client.HTTPConnection, end: float) -> int:
        count = 0
        while time.perf_counter() < end:
            connection.request("POST", "/v2/models/echo/infer", body, headers)
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            count += 1
        return count

    page = ["--dashboard"] if "page" in kinds else []
    with (
        _collector(kinds) as options,
        running_gateway_with_broker(*options, *page) as (run, fabric),
        running_workers(fabric.backend, "--executor", "echo"),
    ):
        with Client(fabric.frontend) as client:
            until_served(client, "echo")
        connections = [http.client.HTTPConnection(run.http) for _ in range(depth)]

        def load(seconds: float) -> int:
            end = time.perf_counter() + seconds
            with ThreadPoolExecutor(depth) as pool:
                return sum(pool.map(lambda connection: call_until(connection, end), connections))

        with _watched(run.process, options, f"http://{run.http}/dashboard/events" if page else None):
            yield Side(load, run.process)
        for connection in connections:
            connection.close()


Server = Callable[[int, int, Sequence[str]], AbstractContextManager[Side]]
SERVERS: dict[str, Server] = {"broker": broker, "gateway": gateway}


def _spread(values: list[float], scale: float) -> str:
    low, middle, high = (value * scale for value in statistics.quantiles(values, n=4))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def _change(ratios: list[float]) -> str:
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    return f"{(middle - 1) * 100:+.1f} % ({(low - 1) * 100:+.1f} to {(high - 1) * 100:+.1f})"


@dataclass
class Compared:
    """Turns of all rounds of one side, and how the observed one compares with the other in each round."""

    rates: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    cpu: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    rate_ratios: list[float] = field(default_factory=list)
    cpu_ratios: list[float] = field(default_factory=list)

    def add(self, off: Side, on: Side) -> None:
        for at, side in enumerate((off, on)):
            self.rates[at].extend(side.rates)
            self.cpu[at].extend(side.cpu)
        self.rate_ratios.append(statistics.median(on.rates) / statistics.median(off.rates))
        self.cpu_ratios.append(statistics.median(on.cpu) / statistics.median(off.cpu))


def compare(server: Server, size: int, depth: int, kinds: Sequence[str], rounds: int, turns: int) -> Compared:
    compared = Compared()
    for number in range(rounds):
        order = ((), kinds) if number % 2 else (kinds, ())
        with server(size, depth, order[0]) as first, server(size, depth, order[1]) as second:
            sides = (first, second)
            for side in sides:
                side.load(1.0)
            for turn in range(turns):
                for side in sides if turn % 2 else reversed(sides):
                    side.turn(TURN)
            compared.add(*(sides if number % 2 else reversed(sides)))
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.observed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="starts of all processes [7]")
    parser.add_argument("--turns", type=int, default=4, help="turns of each side in a round [4]")
    parser.add_argument("--only", choices=SERVERS, default=None, help="leave the other out")
    parser.add_argument(
        "--with", choices=(*KINDS, "nothing"), nargs="+", dest="kinds", default=KINDS, help="what is on [all]"
    )
    parser.add_argument("--bytes", type=int, default=1024, help="bytes of a request [1024]")
    parser.add_argument("--depth", type=int, default=16, help="requests under way [16]")
    given = parser.parse_args()
    print("| | requests/s | CPU of a request, us |\n|---|---|---|")
    for name, server in SERVERS.items():
        if given.only not in (None, name):
            continue
        compared = compare(server, given.bytes, given.depth, given.kinds, given.rounds, given.turns)
        for at, what in enumerate(("off", " + ".join(given.kinds))):
            print(f"| {name}, {what} | {_spread(compared.rates[at], 1)} | {_spread(compared.cpu[at], 1e6)} |")
        changes = _change(compared.rate_ratios), _change(compared.cpu_ratios)
        print(f"| {name}, change | {changes[0]} | {changes[1]} |", flush=True)


if __name__ == "__main__":
    main()
