"""`zmq-offload load` against a real fabric."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import ROOT, Fabric, eventually, running_broker, running_workers
from zmq_offload import Client

SHORT = ["--window", "0.2", "--duration", "0.6"]


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with running_broker() as broker, running_workers(broker.backend, "--executor", "echo"):
        with Client(broker.frontend) as client:
            eventually(client.models)
        yield broker


def load(fabric: Fabric, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zmq_offload", "load", "--broker", fabric.frontend, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_closed_loop_over_processes_is_measured_and_written_down(fabric: Fabric, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "png", "html")}
    options = [text for kind, path in files.items() for text in (f"--{kind}", str(path))]
    arguments = ["--model", "echo", "--shape", "x=2,3:INT32", "--concurrency", "1,5", "--processes", "2", "--verify"]
    ran = load(fabric, *arguments, *SHORT, *options)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0].split()[:3] == ["in", "flight", "requests/s"]
    assert [line.split()[0] for line in ran.stdout.splitlines()[1:3]] == ["1", "5"]
    assert ran.stderr == "", "each level is shown once"
    for path in files.values():
        assert path.stat().st_size > 100
    levels = json.loads(files["json"].read_text())["levels"]
    assert [level["concurrency"] for level in levels] == [1, 5]
    for level in levels:
        assert level["requests"] > 0 and level["errors"] == {}
        assert level["latency_ms"]["p50"] <= level["latency_ms"]["p99"] <= level["latency_ms"]["max"]


def test_an_open_loop_sends_at_its_rate(fabric: Fabric, tmp_path: Path) -> None:
    arguments = ["--model", "echo", "--shape", "x=8", "--rate", "100", "--arrivals", "constant"]
    ran = load(fabric, *arguments, "--window", "0.5", "--duration", "2", "--json", str(tmp_path / "o.json"))
    assert ran.returncode == 0, ran.stderr
    (level,) = json.loads((tmp_path / "o.json").read_text())["levels"]
    assert level["rate"] == 100 and level["errors"] == {}
    assert 40 < level["throughput"] < 160


def test_results_are_compared_with_the_expected_outputs(fabric: Fabric, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4, dtype=np.float32))
    np.save(tmp_path / "other.npy", np.arange(4, dtype=np.float32) + 1)
    given = ["--model", "echo", "--input", f"x={tmp_path / 'x.npy'}", "--verify", *SHORT]
    fine = load(fabric, *given, "--expect", f"x={tmp_path / 'x.npy'}")
    assert fine.returncode == 0, fine.stderr
    wrong = load(fabric, *given, "--expect", f"x={tmp_path / 'other.npy'}")
    assert wrong.returncode == 1
    assert "MISMATCH: output 'x' differs from the expected one by up to 1" in wrong.stdout


def test_impossible_expected_outputs_are_found_before_measuring(fabric: Fabric, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.arange(3, dtype=np.float32))
    given = ["--model", "echo", "--shape", "x=4", "--verify"]
    for name, says in (
        ("y", "the model has no output 'y'; it has 'x'"),
        ("x", "'x' is float32[3]; the model's output is float32[4]"),
    ):
        ran = load(fabric, *given, "--expect", f"{name}={tmp_path / 'y.npy'}")
        assert ran.returncode == 1 and ran.stdout == ""
        assert ran.stderr == f"zmq-offload: error: --expect: {says}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--model", "nobody"], 1, "model 'nobody' is not served; served are: echo (version 1)"),
        (["--model", "echo"], 1, "describe them with --shape or --input"),
        ([], 1, "give --model or --bundle"),
        (["--model", "echo", "--shape", "x=1", "--expect", "x=f.npy"], 1, "f.npy cannot be read"),
        (["--bundle", "nowhere"], 1, "is nowhere a device bundle?"),
        (["--model", "echo", "--concurrency", "0"], 2, "use whole numbers from 1"),
        (["--model", "echo", "--concurrency", "1", "--rate", "5"], 2, "not allowed with"),
        (["--model", "ehco", "--shape", "x=1"], 1, "did you mean 'echo'?"),
        (["--model", "echo", "--shape", "x=1", "--shape", "x=2"], 1, "--shape: 'x' is given twice"),
        (
            ["--model", "echo", "--input", "x=f.npy"],
            1,
            "f.npy cannot be read as a .npy file: No such file or directory",
        ),
        (["--model", "echo", "--shape", "x=1", "--window", "3", "--duration", "2"], 2, "--window 3 is longer than"),
        (["--model", "echo", "--shape", "x=100000000000:INT8"], 1, "has 100,000,000,000 bytes; the limit is"),
        (["--model", "echo", "--shape", "x=1", "--json", "/no/such/a.json"], 1, "a.json cannot be written"),
        (["--model", "echo", "--shape", "x=1", "--json", "same", "--csv", "same"], 1, "are the same file, same"),
    ],
)
def test_an_impossible_test_is_one_clear_line(fabric: Fabric, arguments: list[str], code: int, says: str) -> None:
    ran = load(fabric, *arguments)
    assert ran.returncode == code
    assert says in ran.stderr.splitlines()[-1] and "Traceback" not in ran.stderr


def test_a_missing_broker_is_one_clear_line() -> None:
    command = [sys.executable, "-m", "zmq_offload", "load", "--model", "echo", "--timeout", "0.3"]
    ran = subprocess.run(
        [*command, "--broker", "tcp://127.0.0.1:1"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.returncode == 1 and "no broker answered at tcp://127.0.0.1:1" in ran.stderr


def test_the_frontend_variable_is_where_load_connects(fabric: Fabric) -> None:
    """ZMQ_OFFLOAD_BROKER is the backend, for workers."""
    where = os.environ | {"ZMQ_OFFLOAD_FRONTEND": fabric.frontend, "ZMQ_OFFLOAD_BROKER": fabric.backend}
    command = [sys.executable, "-m", "zmq_offload", "load", "--model", "echo", "--shape", "x=1", *SHORT]
    ran = subprocess.run(command, cwd=ROOT, env=where, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_sender_that_falls_short_of_its_rate_is_marked(fabric: Fabric, tmp_path: Path) -> None:
    arguments = ["--model", "echo", "--shape", "x=1", "--rate", "1000000", "--timeout", "1", *SHORT]
    ran = load(fabric, *arguments, "--json", str(tmp_path / "o.json"))
    assert re.match(r"1,000,000/s \*?\+ ", ran.stdout.splitlines()[1]), ran.stdout
    assert "+ the sender did not reach the rate" in ran.stdout
    (level,) = json.loads((tmp_path / "o.json").read_text())["levels"]
    assert level["short"] and 0 < level["sent"] < 950_000


def test_ctrl_c_keeps_what_was_measured(fabric: Fabric, tmp_path: Path) -> None:
    """All processes of the group get the signal, as from a terminal."""
    arguments = ["--broker", fabric.frontend, "--model", "echo", "--shape", "x=1", "--concurrency", "1,2,3"]
    command = [sys.executable, "-m", "zmq_offload", "load", *arguments, "--json", str(tmp_path / "o.json")]
    with subprocess.Popen(
        [*command, "--window", "0.2", "--duration", "0.2"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline() for _ in range(2)]
        os.killpg(process.pid, signal.SIGINT)
        rest, errors = process.stdout.read(), process.stderr.read()
    assert lines[1].startswith("1 "), lines
    assert process.returncode == 130, errors
    (said,) = errors.splitlines()
    many = re.fullmatch(r"zmq-offload: interrupted: ([12]) of 3 levels were measured", said)
    assert many, errors
    assert len(json.loads((tmp_path / "o.json").read_text())["levels"]) == int(many[1])
    assert rest.count("in flight") == int(many[1]) - 1, rest


def test_ctrl_c_while_its_processes_start_is_one_line(fabric: Fabric) -> None:
    arguments = ["--broker", fabric.frontend, "--model", "echo", "--shape", "x=1", "--processes", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "zmq_offload", "load", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("in flight ")  # printed before they start
        time.sleep(0.1)  # whatever the moment is, there is one line
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr.read() == "zmq-offload: interrupted: 0 of 1 levels were measured\n"
    assert process.returncode == 130


def test_a_repeated_level_is_measured_once(fabric: Fabric) -> None:
    ran = load(fabric, "--model", "echo", "--shape", "x=1", "--concurrency", "2,1,2", *SHORT)
    assert re.findall(r"^(\d) ", ran.stdout, flags=re.M) == ["2", "1"]
