"""The programs from the command line: options, exit codes, errors of one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.processes import ROOT, running_broker, running_workers
from zmq_offload.testing import Fabric


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_status_for_a_person_and_for_a_program(echo_fabric: Fabric) -> None:
    shown = run("-m", "zmq_offload", "status", "--broker", echo_fabric.frontend)
    assert shown.returncode == 0, shown.stderr
    assert "echo" in shown.stdout
    assert "queues: none" in shown.stdout
    whole = run("-m", "zmq_offload", "status", "--broker", echo_fabric.frontend, "--json")
    assert len(json.loads(whole.stdout)["workers"]) == 2


def test_a_closed_pipe_is_not_an_error(echo_fabric: Fabric) -> None:
    command = [sys.executable, "-m", "zmq_offload", "status", "--json", "--broker", echo_fabric.frontend]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_status_connects_to_the_frontend(echo_fabric: Fabric) -> None:
    """ZMQ_OFFLOAD_BROKER is the backend, for workers. A file .env often has both."""
    environment = os.environ | {
        "ZMQ_OFFLOAD_BROKER": echo_fabric.backend,
        "ZMQ_OFFLOAD_FRONTEND": echo_fabric.frontend.replace("127.0.0.1", "*"),
    }
    command = [sys.executable, "-m", "zmq_offload", "status"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "echo" in done.stdout


def test_status_without_a_broker_is_one_line() -> None:
    done = run("-m", "zmq_offload", "status", "--broker", "tcp://127.0.0.1:9", "--timeout", "0.2")
    assert done.returncode == 1
    assert done.stderr == "zmq-offload: error: no broker answered at tcp://127.0.0.1:9 within 0.200 s\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["broker", "--frontend", "localhost"], "use tcp://HOST:PORT"),
        (["broker", "--max-queued", "0"], "whole number from 1"),
        (["broker", "--heartbeat", "nan"], "time in seconds"),
        (
            ["zmq_offload", "gateway", "--http", "8000"],
            "address '8000' is not a host and a port; use HOST:PORT, such as",
        ),
        (["workers", "--executor", "gpu"], "graph or echo"),
        (["workers", "--broker", ""], "one or more endpoints"),
        (["workers", "--processes", "many"], "whole number from 1"),
        (["zmq_offload", "status", "--timeout", "-1"], "time in seconds"),
        (["zmq_offload", "nonsense"], "unknown command 'nonsense'; the commands are broker"),
        (["zmq_offload", "staus"], "did you mean 'status'?"),
        (["zmq_offload", "--versoin"], "unknown option --versoin; did you mean '--version'?"),
        (["zmq_offload", "-V"], "unknown option -V"),
        (["zmq_offload", "load", "--ratte", "5"], "unknown option --ratte; did you mean '--rate'?"),
        (["zmq_offload", "broker", "--heartbeet=5"], "unknown option --heartbeet; did you mean '--heartbeat'?"),
        (["zmq_offload", "worker", "extra"], "unexpected argument 'extra'"),
        (["workers", "--worker-key", "", "--broker-key", ""], "not a file name"),
        (["broker", "--server-key", ""], "not a file name"),
        (["zmq_offload"], "required"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(arguments: list[str], says: str) -> None:
    done = run("-m", *arguments)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_variable_in_the_environment_is_checked_like_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMQ_OFFLOAD_MAX_QUEUED", "lots")
    done = run("-m", "broker")
    assert done.returncode == 2
    assert "whole number from 1" in done.stderr


def test_a_port_that_is_taken_is_named(echo_fabric: Fabric) -> None:
    done = run("-m", "broker", "--frontend", echo_fabric.frontend, "--backend", "tcp://127.0.0.1:0")
    assert done.returncode == 1
    assert f"broker: error: cannot bind to {echo_fabric.frontend}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_broker_stops_at_once(number: int) -> None:
    with running_broker() as fabric:
        assert fabric.broker.end(number) == 0


def test_status_shows_what_the_operations_page_promises() -> None:
    with running_broker() as broker, running_workers(broker.backend, "--executor", "echo", "--name", "w") as workers:
        broker.broker.wait_for(r"INFO worker w\S* at pid \d+ came: 32 slots, serves echo:1")
        shown = run("-m", "zmq_offload", "status", "--broker", broker.frontend)
        assert re.search(r"workers +0 lost, 0 attempts repeated", shown.stdout), shown.stdout
        assert re.search(r"dropped +0 late, 0 duplicate, 0 malformed, 0 undelivered", shown.stdout), shown.stdout
        assert re.search(r"echo +1 +1 +yes", shown.stdout), shown.stdout
        assert re.search(r"w\S* +pid \d+ +32 .* ready +echo:1", shown.stdout), shown.stdout
        assert workers.end() == 0
        broker.broker.wait_for(r"INFO worker w\S* at pid \d+ says goodbye, with 0 requests")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_broker(number: signal.Signals) -> None:
    with running_broker() as broker:
        assert broker.broker.end(number) == 0
        assert any("stopping: finishing 0 requests" in line for line in broker.broker.seen())
