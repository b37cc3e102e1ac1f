"""The servers of the benchmark of transports, which all run the same subgraph with one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.benchmarks.fabric import until_served
from tests.support.processes import running_broker, running_gateway, running_workers
from tests.support.servers import tritonserver
from tests.transports.tvmrpc.servers import our_server, plain_server
from zmq_offload import Client
from zmq_offload.export import Running, export_to_triton


class Way(NamedTuple):
    """A server and one of the protocols by which it is called. `roots` are its processes, apart from their children."""

    server: str
    url: str
    roots: tuple[int, ...]

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    def pids(self) -> list[int]:
        """All processes of the server now. The one of TVM's RPC server has a child for each connection."""
        processes = [psutil.Process(root) for root in self.roots]
        return [each.pid for root in processes for each in (root, *root.children(recursive=True))]


@contextmanager
def fabric_and_gateway(repository: Path, model: str) -> Iterator[list[Way]]:
    """A worker behind a broker, called by ZeroMQ and, through a gateway, by each protocol that it speaks."""
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, "--repository", str(repository), "--threads", "1") as workers,
        running_gateway(fabric.frontend) as gateway,
    ):
        with Client(fabric.frontend) as client:
            until_served(client, model)
        behind = (fabric.broker.popen.pid, workers.popen.pid)
        before = (gateway.process.popen.pid, *behind)
        addresses = {"grpc": gateway.grpc, "http": gateway.http, "tfs+grpc": gateway.grpc, "tfs+http": gateway.http}
        yield [
            Way("broker and worker", fabric.frontend, behind),
            *[Way("gateway, broker, worker", f"{name}://{at}", before) for name, at in addresses.items()],
        ]


@contextmanager
def triton(repository: Path, folder: Path, python: str) -> Iterator[list[Way]]:
    export_to_triton(repository, folder / "models", running=Running(threads=1))
    with tritonserver(folder, python, folder / "models") as running:
        pid = (running.process.pid,)
        yield [Way("Triton", f"grpc://{running.grpc}", pid), Way("Triton", f"http://{running.http}", pid)]


@contextmanager
def tvmrpc(repository: Path) -> Iterator[list[Way]]:
    """TVM's RPC server, with our function and as it is."""
    with our_server(repository) as (ours, our_pid), plain_server() as (plain, pid):
        yield [
            Way("TVM's RPC server with our function", ours, (our_pid,)),
            Way("TVM's RPC server as it is", f"{plain}?repository={repository}", (pid,)),
        ]
