"""Files in the current folder with the names of this project's packages are not imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import eventually, running, running_broker, running_workers, status
from zmq_offload.console.programs import command

NAMES = ("broker", "workers", "zmq_offload", "client", "status", "random")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"print('the local {name}.py ran'); raise SystemExit(7)\n")
    return tmp_path


def program(*arguments: str) -> list[str]:
    """Run `zmq-offload` as its console script does, with the script's folder on the path and not the current one."""
    return [*command()[1:], *arguments]


def test_broker_and_workers_start_next_to_files_of_their_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.processes.ROOT", folder)
    loopback = "tcp://127.0.0.1:0"
    with running(*program("broker", "--frontend", loopback, "--backend", loopback)) as broker:
        ready = broker.wait_for(r"ready frontend=(\S+) backend=(\S+)")
        with running(*program("worker", "--executor", "echo", "--broker", ready[2])) as workers:
            eventually(lambda: status(ready[1])["workers"])
            assert workers.end() == 0
        assert broker.end() == 0
    assert not [line for line in [*broker.lines, *workers.lines] if "the local" in line]


def test_the_module_runs_the_same_commands(folder: Path) -> None:
    (folder / "zmq_offload.py").unlink()  # `python -m zmq_offload` would be that file
    where = os.environ | {"PYTHONPATH": str(Path(command()[1]).parent.parent)}
    for name in ("broker", "worker"):
        done = subprocess.run(
            [sys.executable, "-m", "zmq_offload", name, "--version"],
            cwd=folder, env=where, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout.split()[0]) == (0, "zmq-offload"), done.stdout + done.stderr


def test_the_processes_of_load_do_not_look_into_the_current_folder(tmp_path: Path) -> None:
    for name in ("signal", "random", "zmq", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"print('the local {name}.py ran'); raise SystemExit(7)\n")
    with running_broker() as broker, running_workers(broker.backend, "--executor", "echo"):
        eventually(lambda: status(broker.frontend)["workers"])
        options = ["--broker", broker.frontend, "--model", "echo", "--shape", "x=1", "--duration", "0.2", "--quiet"]
        done = subprocess.run([*command(), "load", *options], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        assert "the local" not in done.stdout
