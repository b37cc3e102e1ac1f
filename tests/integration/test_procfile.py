"""The Procfile: `honcho start` starts a working fabric, in any order, and SIGTERM ends all of it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tests.support.leftovers import MARK_VARIABLE, new_mark, processes_marked
from tests.support.processes import Process, eventually, running
from zmq_offload import Client

# The Procfile runs the `python` of the activated environment.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago. Processes of honcho cannot tell each other their ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@pytest.mark.parametrize("order", [["broker", "worker", "gateway"], ["gateway", "worker", "broker"]])
def test_honcho_brings_up_a_fabric_from_environment_variables(order: list[str]) -> None:
    http, metrics, of_gateway, *ports = free_ports(5)
    frontend, backend = (f"tcp://127.0.0.1:{port}" for port in ports)
    mark = new_mark()
    environment = {
        "PATH": PATH,
        MARK_VARIABLE: mark,
        "ZMQ_OFFLOAD_FRONTEND": frontend,
        "ZMQ_OFFLOAD_BACKEND": backend,
        "ZMQ_OFFLOAD_BROKER": backend,
        "ZMQ_OFFLOAD_EXECUTOR": "echo",
        "ZMQ_OFFLOAD_PROCESSES": "2",
        "ZMQ_OFFLOAD_HTTP": f"127.0.0.1:{http}",
        "ZMQ_OFFLOAD_GRPC": "none",
        "ZMQ_OFFLOAD_METRICS": f"127.0.0.1:{metrics}",
        "ZMQ_OFFLOAD_GATEWAY_METRICS": f"127.0.0.1:{of_gateway}",
    }
    with running("-m", "honcho", "start", *order, **environment) as honcho:
        for port in (metrics, of_gateway):  # programs with the same variables need ports of their own
            honcho.wait_for(f"metrics=127.0.0.1:{port}")
        serve_and_stop(honcho, frontend, f"http://127.0.0.1:{http}")
    assert processes_marked(mark) == {}


def serve_and_stop(honcho: Process, frontend: str, http: str) -> None:
    with Client(frontend) as client:
        eventually(lambda: len(client.status()["workers"]) == 2)
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(client.infer("echo", {"x": x})["x"], x)
    honcho.wait_for("ready http=")
    with urllib.request.urlopen(f"{http}/v2/health/ready", timeout=20) as answer:
        assert answer.status == 200
    honcho.end()
    stopped = [line for line in honcho.lines if "stopped (rc=0)" in line]
    assert len(stopped) == 3, "\n".join(honcho.lines)
