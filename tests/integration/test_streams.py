"""Programs whose output nobody reads, that are interrupted early, or that run at the limits of their options."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import ROOT, eventually, running_broker, running_workers, status
from zmq_offload import Client
from zmq_offload.console.programs import command
from zmq_offload.testing import Fabric

LOOPBACK = ("--frontend", "tcp://127.0.0.1:0", "--backend", "tcp://127.0.0.1:0")


def shell(line: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `zmq-offload ARGUMENTS` as "$@" in a shell command."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *command(), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


COMMANDS = (("--help",), ("--version",), ("load", "--help"), ("broker", "--help"), ("worker", "--version"))


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_closed_streams_are_not_an_error(arguments: tuple[str, ...]) -> None:
    for closed in (">&-", "<&-", "2>&-", ">&- 2>&- <&-"):
        done = shell(f'"$@" {closed}', *arguments)
        assert (done.returncode, done.stderr) == (0, ""), closed


def test_commands_work_with_a_closed_output(echo_fabric: Fabric, tmp_path: Path) -> None:
    done = shell('"$@" >&-', "status", "--broker", echo_fabric.frontend)
    assert (done.returncode, done.stderr) == (0, "")
    options = ("--model", "echo", "--shape", "x=1", "--duration", "0.3", "--json", str(tmp_path / "o.json"))
    done = shell('"$@" >&-', "load", "--broker", echo_fabric.frontend, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "o.json").exists()


def test_a_reader_that_leaves_ends_a_command_quietly(echo_fabric: Fabric) -> None:
    many = ("load", "--broker", echo_fabric.frontend, "--model", "echo", "--shape", "x=1", "--concurrency", "1,2,3,4")
    for arguments in (("load", "--help"), ("status", "--broker", echo_fabric.frontend), (*many, "--duration", "0.2")):
        done = shell('"$@" | head -1; exit ${PIPESTATUS[0]}', *arguments)
        assert done.returncode in (0, 128 + signal.SIGPIPE), done.stderr
        assert done.stderr == "" and len(done.stdout.splitlines()) == 1


def test_a_full_disk_is_one_line(echo_fabric: Fabric) -> None:
    done = shell('"$@" >/dev/full', "status", "--json", "--broker", echo_fabric.frontend)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("zmq-offload: error: ") and "No space left" in line


def test_broker_and_workers_with_closed_outputs_stop_when_told() -> None:
    with running_broker() as fabric:
        worker = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", *command(), "worker", "--executor", "echo"]
        with subprocess.Popen([*worker, "--broker", fabric.backend]) as process:
            try:
                (known,) = eventually(lambda: status(fabric.frontend)["workers"])
                with Client(fabric.frontend) as client:
                    client.infer("echo", {"x": np.ones(1, np.float32)})
            finally:
                process.terminate()
            assert known["name"] and process.wait(30) == 0
        assert fabric.broker.end() == 0


FAKE = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
except BaseException as error:  # as NumPy's own modules do
    raise ImportError("a damaged package") from error
"""


IMPORTING_NUMPY = ["broker", "status", "load", "demo", "plan"]
IMPORTING_ZMQ = [*IMPORTING_NUMPY, "link", "keys"]  # the supervisor of workers imports neither


@pytest.mark.parametrize(
    ("program", "name"), [*((p, "numpy") for p in IMPORTING_NUMPY), *((p, "zmq") for p in IMPORTING_ZMQ)]
)
def test_ctrl_c_during_imports_is_quiet(program: str, name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(FAKE)
    (tmp_path / "m.onnx").touch()
    arguments = {
        "broker": LOOPBACK,
        "worker": ("--executor", "echo"),
        "load": ("--model", "m"),
        "link": ("--to", "tcp://127.0.0.1:1"),
        "plan": ("m.onnx", "--bandwidth", "1Mbit", "--rtt", "1ms"),
        "keys": ("new", "x"),
    }.get(program, ())
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [*command(), program, *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr in ("", "zmq-offload: interrupted\n")


LEAST = {"--heartbeat": "0.001", "--patience": "0.001", "--hang-grace": "0.001", "--max-frame-bytes": "1"}
MOST = {"--heartbeat": "2000", "--patience": "999999", "--hang-grace": "999999", "--max-frame-bytes": str(2**62 - 1)}
BROKERS_LEAST = LEAST | {"--grace": "0.001", "--worker-grace": "0.001", "--max-attempts": "1", "--max-queued": "1"}
BROKERS_MOST = MOST | {
    "--grace": "999999",
    "--worker-grace": "999999",
    "--max-attempts": str(10**9),
    "--max-queued": str(10**9),
    "--max-queued-bytes": str(2**62 - 1),
}


def listed(options: dict[str, str]) -> list[str]:
    return [word for option in options.items() for word in option]


@pytest.mark.parametrize("options", [BROKERS_LEAST, BROKERS_MOST], ids=["least", "most"])
def test_a_broker_runs_at_the_ends_of_its_options(options: dict[str, str]) -> None:
    with running_broker(*listed(options)) as fabric:
        assert status(fabric.frontend)["uptime"] >= 0
        assert fabric.broker.end() == 0


@pytest.mark.parametrize(
    "options", [LEAST | {"--refresh": "0.001"}, MOST | {"--refresh": "999999"}], ids=["least", "most"]
)
def test_a_worker_runs_at_the_ends_of_its_options(options: dict[str, str]) -> None:
    with running_broker() as fabric, running_workers(fabric.backend, "--executor", "echo", *listed(options)) as workers:
        workers.wait_for("connected to broker")
        assert workers.end() == 0
    assert not [line for line in workers.lines if "Traceback" in line]
