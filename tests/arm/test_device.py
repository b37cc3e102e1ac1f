"""The device half on an emulated ARM, with a broker and workers of this machine, against ONNX Runtime's uncut model."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from tests.arm.root import Root
from tests.support import onnx_models
from tests.support.processes import Process, eventually, running, running_broker, running_workers, worker_pids
from zmq_offload import Client
from zmq_offload.compile import compile_model

pytestmark = pytest.mark.arm

FRAMES = onnx_models.random(12, 1, 3, 24, 24, seed=3)
TARGETS = {"raspberry-pi-4": "cortex-a72", "raspberry-pi-5": "cortex-a76", "graviton3": "max"}


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def dist(target: str, convnet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(target)
    compile_model(
        convnet, inputs={"x": FRAMES.shape[1:]}, cut="features", name="net", output=folder, device_target=target,
        with_fallback=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def expected(convnet: Path) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(convnet), providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {"x": frame})[0] for frame in FRAMES])


@dataclass
class Device:
    """A program on the emulated device, and where its commands go."""

    process: Process
    commands: IO[str]
    folder: Path

    def tell(self, command: str, how: object) -> Path:
        """Give a command, and return where the results will be."""
        file = self.folder / f"{command}-{how}.npy"
        print(command, how, file, file=self.commands)
        return file


@pytest.fixture
def fabric(dist: Path) -> Iterator[tuple[str, Process]]:
    with (
        running_broker() as broker,
        running_workers(broker.backend, "--repository", str(dist / "repository")) as served,
    ):
        with Client(broker.frontend) as client:
            eventually(client.models, timeout=60)
        yield broker.frontend, served


@pytest.fixture
def device(arm64: Root, target: str, dist: Path, fabric: tuple[str, Process], tmp_path: Path) -> Iterator[Device]:
    frames, pipe = tmp_path / "frames.npy", tmp_path / "commands"
    np.save(frames, FRAMES)
    os.mkfifo(pipe)
    program = Path(__file__).with_name("device.py")
    arguments = map(str, ("python3", program, dist / "device", fabric[0], frames, pipe))
    # Opened for reading as well, this end does not wait for the other.
    with (
        os.fdopen(os.open(pipe, os.O_RDWR), "w", buffering=1) as commands,
        running("-m", "tests.arm.root", "--cpu", TARGETS[target], "--", *arguments) as process,
    ):
        assert process.wait_for(r"^machine (\S+)")[1] == "aarch64"
        yield Device(process, commands, tmp_path)


def test_it_computes_what_the_uncut_model_does(
    device: Device, fabric: tuple[str, Process], expected: np.ndarray
) -> None:
    called = device.tell("call", "always")
    device.process.wait_for(rf"^called always {len(FRAMES)} 0 0 0$", timeout=120)
    same(called, expected)

    mapped = device.tell("map", 4)
    device.process.wait_for("^item 2$", timeout=60)
    (worker,) = worker_pids(fabric[0])
    os.kill(worker, signal.SIGKILL)  # the supervisor starts another
    device.process.wait_for("^mapped$", timeout=120)
    same(mapped, expected)
    assert worker_pids(fabric[0]) != [worker]

    fabric[1].end()
    alone = device.tell("call", "auto")
    counts = device.process.wait_for(r"^called auto (\d+) (\d+) (\d+) (\d+)$", timeout=120).groups()
    offloaded, local, fell_back, failed = map(int, counts)
    assert (offloaded, local + fell_back, failed) == (0, len(FRAMES), 0) and fell_back
    same(alone, expected)


def same(file: Path, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.load(file), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["raspberry-pi-5"], indirect=True)
def test_a_board_without_the_features_refuses(arm64: Root, dist: Path) -> None:
    script = f"import zmq_offload; zmq_offload.load({str(dist / 'device')!r}, 'tcp://127.0.0.1:1')"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        arm64.run(["python3", "-c", script], cpu="cortex-a72")
    message = "was built for a CPU with dotprod, fullfp16, lse, rdm, which this one lacks; compile it for this one"
    assert message in caught.value.stderr
