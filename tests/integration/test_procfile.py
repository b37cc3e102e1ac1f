"""The Procfile: `honcho start` starts a working fabric, in any order, and SIGTERM ends all of it."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.leftovers import MARK_VARIABLE, new_mark, processes_marked
from tests.support.processes import Process, eventually, running
from zmq_offload import Client

# The Procfile runs the `python` of the activated environment.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def free_ports() -> tuple[int, int]:
    """Two ports that were free a moment ago. Processes of honcho cannot tell each other their ports."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


@pytest.mark.parametrize("order", [["broker", "worker"], ["worker", "broker"]])
def test_honcho_brings_up_a_fabric_from_environment_variables(order: list[str]) -> None:
    frontend, backend = (f"tcp://127.0.0.1:{port}" for port in free_ports())
    mark = new_mark()
    environment = {
        "PATH": PATH,
        MARK_VARIABLE: mark,
        "ZMQ_OFFLOAD_FRONTEND": frontend,
        "ZMQ_OFFLOAD_BACKEND": backend,
        "ZMQ_OFFLOAD_BROKER": backend,
        "ZMQ_OFFLOAD_EXECUTOR": "echo",
        "ZMQ_OFFLOAD_PROCESSES": "2",
    }
    with running("-m", "honcho", "start", *order, **environment) as honcho:
        serve_and_stop(honcho, frontend)
    assert processes_marked(mark) == {}


def serve_and_stop(honcho: Process, frontend: str) -> None:
    with Client(frontend) as client:
        eventually(lambda: len(client.status()["workers"]) == 2)
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(client.infer("echo", {"x": x})["x"], x)
    honcho.end()
    stopped = [line for line in honcho.lines if "stopped (rc=0)" in line]
    assert len(stopped) == 2, "\n".join(honcho.lines)
