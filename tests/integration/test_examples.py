"""The files in examples/ run as a user runs them, against real brokers and workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import onnx_models
from tests.support.processes import ROOT, running_broker, running_workers, wait_for_workers
from zmq_offload.cli.main import main
from zmq_offload.testing import Fabric

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object, broker: str = "tcp://127.0.0.1:1", folder: Path | None = None) -> str:
    """The output of an example; it must end without an error."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"ZMQ_OFFLOAD_FRONTEND": broker, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.two_products(tmp_path_factory.mktemp("model") / "model.onnx")


def test_infer(echo_fabric: Fabric) -> None:
    first, *_, sums = run("infer.py", broker=echo_fabric.frontend).splitlines()
    assert first.startswith("[[0. 1. 2.]")
    assert sums == str([15.0 + 6 * i for i in range(8)])


def test_infer_asyncio(echo_fabric: Fabric) -> None:
    assert run("infer_asyncio.py", broker=echo_fabric.frontend) == f"{[[float(i)] * 3 for i in range(8)]}\n"


def test_failover() -> None:
    with running_broker() as first, running_broker() as second:
        brokers = (first.frontend, second.frontend)
        with running_workers(f"{first.backend},{second.backend}", "--executor", "echo"):
            for frontend in brokers:
                wait_for_workers(frontend, 1)
            first.broker.end(signal.SIGKILL)
            lines = run("failover.py", *brokers).splitlines()
    assert [re.match(r"call (\d): \[(\d)\] after", line) is not None for line in lines] == [True] * 5


def test_split_onnx_and_pipelined(onnx_file: Path, tmp_path: Path) -> None:
    *cuts, last = run("split_onnx.py", onnx_file, folder=tmp_path).splitlines()
    assert "h2 FP32[1,64]: 256 bytes to send, 50% of the work offloaded" in cuts
    assert last == "cut at h1: the device loads dist/device, workers serve dist/repository"
    with (
        running_broker() as fabric,
        running_workers(fabric.backend, "--repository", str(tmp_path / "dist/repository")),
    ):
        wait_for_workers(fabric.frontend, 1)
        lines = run("pipelined.py", tmp_path / "dist/device", broker=fabric.frontend).splitlines()
    assert [line.split(" [")[0] for line in lines] == [f"{i} (1, 64)" for i in range(16)]
    assert len(set(lines)) == 16


def test_keys(tmp_path: Path) -> None:
    for name in ("broker", "camera", "stranger", "worker"):
        assert main(["keys", "new", name, "--directory", str(tmp_path)]) == 0
    for name in ("camera", "worker"):
        assert main(["keys", "authorize", str(tmp_path / f"{name}.key"), "--list", str(tmp_path / f"{name}s")]) == 0
    lists = ["--authorized-clients", str(tmp_path / "cameras"), "--authorized-workers", str(tmp_path / "workers")]
    keys = ["--worker-key", str(tmp_path / "worker.key_secret"), "--broker-key", str(tmp_path / "broker.key")]
    with (
        running_broker("--server-key", str(tmp_path / "broker.key_secret"), *lists) as fabric,
        running_workers(fabric.backend, "--executor", "echo", *keys),
    ):
        arguments = [tmp_path / "camera.key_secret", tmp_path / "broker.key"]
        assert run("keys.py", *arguments, broker=fabric.frontend).splitlines()[-1] == "[0 1 2]"
        with pytest.raises(AssertionError, match="UNAUTHENTICATED"):
            run("keys.py", tmp_path / "stranger.key_secret", tmp_path / "broker.key", broker=fabric.frontend)


def test_relax_module(tmp_path: Path) -> None:
    values = run("relax_module.py", folder=tmp_path)
    assert sum(map(float, re.findall(r"[\d.e+-]*\d", values))) == pytest.approx(1, abs=1e-4)
    assert (tmp_path / "dist-relax/repository/relax/1/subgraph.so").is_file()


def test_own_fabric() -> None:
    match = re.fullmatch(r"400000 bytes there and back: [\d.]+ ms, over the link ([\d.]+) ms\n", run("own_fabric.py"))
    assert match is not None
    assert float(match[1]) > 20  # which the link takes, however fast the rest is


def test_the_table_lists_each_example() -> None:
    listed = re.findall(r"^\| \[([\w.]+)\]", (EXAMPLES / "README.md").read_text(), re.M)
    present = [file.name for file in EXAMPLES.glob("[!_]*") if file.suffix == ".py" or (file / "README.md").is_file()]
    assert sorted(listed) == sorted(present)


@pytest.mark.parametrize("example", [file.name for file in sorted(EXAMPLES.glob("[!_]*.py"))])
def test_an_example_is_short(example: str) -> None:
    lines = (EXAMPLES / example).read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 22
