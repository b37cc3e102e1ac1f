"""Times that an emulated ARM measures, in a plan of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.arm.root import Root
from tests.plan.test_plan import no_fabric  # noqa: F401  a fixture
from zmq_offload.cli.main import main
from zmq_offload.compile import compile_model
from zmq_offload.plan.files import CutTimes

pytestmark = pytest.mark.arm


def test_a_device_measures_what_it_cannot_compile(
    arm64: Root, convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [str(convnet), "--input", "x=1,3,64,64"]
    parts, times, plan = tmp_path / "parts", tmp_path / "pi.json", tmp_path / "plan.json"
    assert main(["profile", *model, "--target", "raspberry-pi-4", "--parts", str(parts), "--quiet"]) == 0
    command = ["profile", parts, "--save", times, "--repeat", "3", "--threads", "1", "--quiet"]
    said = arm64.run(["python3", "-m", "zmq_offload", *command], cpu="cortex-a72").stdout
    assert "convnet.onnx takes " in said and "(cortex-a72), 1 thread" in said
    measured = CutTimes.read(times)

    link = ["--bandwidth", "1Gbit", "--rtt", "1ms", "--server-threads", "1", "--repeat", "3", "--confirm", "1"]
    picture = str(tmp_path / "plan.png")
    options = ["--device-profile", str(times), "--save", str(plan), "--quiet", "-o", picture]
    assert main(["plan", *model, *link, *options]) == 0
    said = capsys.readouterr().out
    assert f"(cortex-a72), 1 thread (measured there: {times})" in said
    assert f"--plan {plan} --name NAME --device-target raspberry-pi-4\n" in said
    # Emulated, it takes many times as long as here.
    assert json.loads(plan.read_text())["cut"]
    assert f"{measured.times.whole * 1e3:.2f}" in next(line for line in said.splitlines() if "device only" in line)


def test_a_device_shows_where_the_time_of_its_bundle_goes(arm64: Root, convnet: Path, tmp_path: Path) -> None:
    shapes = {"x": (1, 3, 24, 24)}
    options = {"name": "net", "output": tmp_path, "device_target": "raspberry-pi-4"}
    compiled = compile_model(convnet, inputs=shapes, cut="features", **options)
    arguments = ["profile", compiled.device, "--repeat", "3", "--quiet"]
    said = arm64.run(["python3", "-m", "zmq_offload", *arguments], cpu="cortex-a72").stdout
    assert "target   llvm aarch64-linux-gnu cortex-a72" in said
    assert "net (offloaded)" in said and "the peak is not measured" in said
