"""The servers of the gateway's benchmark, each with an echo of FP32."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks.gateway_client import MODEL
from tests.benchmarks.measure import cpu_seconds
from tests.benchmarks.peer_servers import mosec_server
from tests.support.oracle import triton
from tests.support.processes import (
    running_broker,
    running_gateway,
    running_gateway_with_broker,
    signed_workers,
    wait_for_workers,
)


@dataclass(frozen=True)
class Server:
    """A server and one of its ports; `roots` are the processes that it consists of, by
    name, apart from their children.

    `statistics` is HOST:PORT of its HTTP, or nothing if it counts no requests.
    """

    name: str
    kind: str
    url: str
    roots: Mapping[str, int]
    statistics: str = ""

    def cpu(self) -> Counter[str]:
        """The CPU time of all processes of the server until now, in seconds, by root."""
        times: Counter[str] = Counter()
        for name, root in self.roots.items():
            process = psutil.Process(root)
            times[name] = sum(cpu_seconds(each.pid) for each in (process, *process.children(recursive=True)))
        return times

    def count(self) -> int:
        """The requests that succeeded until now, as the server counts them."""
        with urllib.request.urlopen(f"http://{self.statistics}/v2/models/{MODEL}/stats", timeout=20) as response:
            (model,) = json.load(response)["model_stats"]
        return int(model["inference_stats"]["success"]["count"])


def _both(name: str, http: str, grpc: str, roots: Mapping[str, int]) -> list[Server]:
    return [
        Server(f"{name}, HTTP", "http", http, roots, http),
        Server(f"{name}, gRPC", "grpc", grpc, roots, http),
    ]


@contextmanager
def gateway(folder: Path, python: str) -> Iterator[list[Server]]:
    """A gateway, a broker and a supervisor with one worker."""
    with running_broker() as broker, signed_workers(broker.backend) as workers:
        wait_for_workers(broker.frontend, 1)
        with running_gateway(broker.frontend) as running:
            processes = {"gateway": running.process, "broker": broker.broker, "worker": workers}
            roots = {name: process.popen.pid for name, process in processes.items()}
            yield _both("zmq-offload", running.http, running.grpc, roots)


@contextmanager
def gateway_with_broker(folder: Path, python: str) -> Iterator[list[Server]]:
    """The same with the broker in the gateway's process."""
    with running_gateway_with_broker() as (running, broker), signed_workers(broker.backend) as workers:
        wait_for_workers(broker.frontend, 1)
        roots = {"gateway and broker": running.process.popen.pid, "worker": workers.popen.pid}
        yield _both("zmq-offload --with-broker", running.http, running.grpc, roots)


@contextmanager
def real_triton(folder: Path, python: str) -> Iterator[list[Server]]:
    with triton(folder, python) as running:
        yield _both("Triton", running.http, running.grpc, {"Triton": running.process.pid})


@contextmanager
def mosec(folder: Path, python: str) -> Iterator[list[Server]]:
    with mosec_server(folder, python) as (process, port):
        yield [Server("mosec, HTTP", "mosec", f"127.0.0.1:{port}", {"mosec": process.pid})]


SERVERS = {"gateway": gateway, "with-broker": gateway_with_broker, "triton": real_triton, "mosec": mosec}
