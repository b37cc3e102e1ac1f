"""Brokers on ipc:// paths: none takes over the path of another, and no file stays."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from tests.support.processes import ROOT, eventually, running_broker, running_workers, status
from zmq_offload.errors import FailedPrecondition
from zmq_offload.net import transport


def test_a_second_broker_does_not_take_the_path(tmp_path: Path) -> None:
    front, back = f"ipc://{tmp_path}/f", f"ipc://{tmp_path}/b"
    with running_broker(frontend=front, backend=back) as fabric, running_workers(back, "--executor", "echo"):
        (worker,) = eventually(lambda: status(front)["workers"])
        assert re.fullmatch(r"pid \d+", worker["address"])
        for frontend, backend, taken in ((front, f"{back}2", front), (f"{front}2", back, back)):
            done = subprocess.run(
                [sys.executable, "-m", "broker", "--frontend", frontend, "--backend", backend],
                cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 1
            assert f"broker: error: cannot bind to {taken}: another program listens there" in done.stderr
        assert status(front)["workers"], "the first goes on"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "f"]
        assert fabric.broker.end() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_socket_file_stays(tmp_path: Path, number: int) -> None:
    with running_broker(frontend=f"ipc://{tmp_path}/f", backend=f"ipc://{tmp_path}/b") as fabric:
        assert fabric.broker.end(number) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_killed_brokers_file_is_replaced(tmp_path: Path) -> None:
    front, back = f"ipc://{tmp_path}/f", f"ipc://{tmp_path}/b"
    with running_broker(frontend=front, backend=back) as fabric:
        fabric.broker.kill()
    assert (tmp_path / "f").is_socket()
    with running_broker(frontend=front, backend=back) as fabric:
        assert status(front)["workers"] == []
        assert fabric.broker.end() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_socket_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("precious")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server:
        with pytest.raises(FailedPrecondition, match="is not a socket"):
            transport.bind(server, f"ipc://{tmp_path}/f")
        with pytest.raises(FailedPrecondition, match="No such file"):
            transport.bind(server, f"ipc://{tmp_path}/no/where")
    assert (tmp_path / "f").read_text() == "precious"


def test_the_file_of_a_later_broker_stays(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server:
        _, file = transport.bind(server, f"ipc://{tmp_path}/f")
        assert file is not None
        (tmp_path / "f").unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(tmp_path / "f"))
            file.remove()
            assert (tmp_path / "f").is_socket()
        (tmp_path / "f").unlink()
        file.remove()
