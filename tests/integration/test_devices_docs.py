"""What docs/devices.md says: its commands run, its first frame is there, its loop and its unit work."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.processes import ROOT, eventually, running, running_broker, running_workers
from tests.support.wheels import stand_ins
from zmq_offload import Client
from zmq_offload.compile import compile_model
from zmq_offload.console.programs import command

PAGE = (ROOT / "docs" / "devices.md").read_text()
SHAPE = (1, 3, 32, 32)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def lines(start: str) -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.startswith(start)]


@pytest.mark.device
def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """In their order, with smaller inputs, free ports, and stand-ins for the wheels."""
    onnx_models.convnet(tmp_path / "model.onnx")
    wheels = stand_ins(tmp_path)
    opt = tmp_path / "opt"
    opt.mkdir()
    with ExitStack() as programs:
        backend = frontend = ""
        for line in lines("zmq-offload ") + lines("tar "):
            words = shlex.split(line, comments=True)
            if words[1] == "broker":
                free = [re.sub(r"tcp://.*:\d+", "tcp://127.0.0.1:0", word) for word in words[2:]]
                ready = programs.enter_context(running("-m", "broker", *free)).wait_for(r"frontend=(\S+) backend=(\S+)")
                frontend, backend = ready[1], ready[2]
            elif words[1] == "worker":
                given = [str(tmp_path / word) if word.startswith("dist") else word for word in words[2:]]
                programs.enter_context(running_workers(backend, *given))
                with Client(frontend) as client:
                    eventually(client.models, timeout=60)
            elif words[0] == "tar":
                here = line.replace("ssh pi tar", "tar").replace("/opt/zmq-offload", str(opt))
                subprocess.run(["bash", "-euo", "pipefail", "-c", here], cwd=tmp_path, check=True)
            else:
                small = [{"TENSOR": "features", "x=1,3,320,320": "x=1,3,32,32"}.get(word, word) for word in words[1:]]
                small += ["--wheels", str(wheels)] if words[1] == "image" else []
                done = subprocess.run([*command(), *small], cwd=tmp_path, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
        assert {path.name for path in opt.iterdir()} == {"run", "site", "device"}
        compile_model(
            tmp_path / "model.onnx", inputs={"x": SHAPE}, cut=["features"], name="ocr", output=tmp_path / "own"
        )
        (first,) = blocks("python")
        first = first.replace("/opt/zmq-offload/device", str(tmp_path / "own/device"))
        first = first.replace("tcp://edge:5555", frontend)
        done = subprocess.run([sys.executable, "-c", first], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.stdout == "(1, 10)\n", done.stderr


@pytest.mark.device
def test_the_loop_of_a_camera_goes_on_after_an_error(tmp_path: Path) -> None:
    """OpenCV reads pictures from files here, as it reads those of a camera."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = onnx_models.convnet(tmp_path / "net.onnx")
    compile_model(net, inputs={"x": SHAPE}, cut=["features"], name="net", output=tmp_path / "dist")
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((48, 64, 3), 40 * number, "uint8"))
    words = [sys.executable, ROOT / "examples/camera/camera.py", tmp_path / "dist/device", tmp_path / "%d.png"]
    with running_broker() as fabric:
        environment = os.environ | {"ZMQ_OFFLOAD_FRONTEND": fabric.frontend, "PYTHONPATH": str(ROOT)}

        def shown() -> list[str]:
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        missing = shown()
        with running_workers(fabric.backend, "--repository", str(tmp_path / "dist/repository")):
            with Client(fabric.frontend) as client:
                eventually(client.models, timeout=60)
            results = shown()
    assert len(missing) == len(results) == 6
    assert not [line for line in missing if "a second" in line]
    assert [line.rpartition(", ")[0] for line in results] == [f"picture {n}: (1, 10)" for n in range(1, 7)]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (ROOT / "examples" / "camera" / "camera.service").read_text()
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "camera.service").write_text(unit.replace("/opt/zmq-offload/run", str(tmp_path / "run"), 1))
    verify = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "camera.service")]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "camera.service" not in done.stderr, done.stderr
