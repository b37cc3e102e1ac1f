"""Parts of a model in a folder: a machine without a compiler measures them for a plan on another one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plan.test_plan import no_fabric, plan  # noqa: F401  a fixture
from zmq_offload.cli.main import main
from zmq_offload.errors import FailedPrecondition
from zmq_offload.plan.files import CutTimes
from zmq_offload.plan.parts import DESCRIPTION, Parts, measure_parts

INPUT = ["--input", "x=1,3,16,16"]


@pytest.fixture(scope="module")
def parts(convnet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "new" / "parts"
    assert main(["profile", str(convnet), *INPUT, "--target", "host", "--parts", str(folder), "--quiet"]) == 0
    return folder


def test_a_plan_takes_the_times_of_carried_parts(
    parts: Path, convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "device.json"
    assert main(["profile", str(parts), "--save", str(saved), "--repeat", "3", "--threads", "1", "--quiet"]) == 0
    assert "convnet.onnx takes " in capsys.readouterr().out
    found = CutTimes.read(saved)
    assert found.threads == 1 and found.times.whole > 0 and min(found.times.before[1:]) > 0
    assert min(found.times.encode["int8"]) > 0

    # As slow as no machine is, so that the plan can only have it from the file.
    slow = json.loads(saved.read_text())
    slow["machine"] = "slow"
    slow["seconds"]["before"] = [0.0, 11.0, 12.0, 13.0, 14.0]
    slow["seconds"]["behind"] = [14.0, 3.0, 2.0, 1.0, 0.0]
    saved.write_text(json.dumps(slow))
    file = tmp_path / "plan.json"
    options = ["--device-profile", str(saved), "--confirm", "0", "--save", str(file)]
    assert plan(convnet, tmp_path, *options) == 0
    said = capsys.readouterr().out
    assert f"slow, 1 thread (measured there: {saved})" in said
    assert json.loads(file.read_text())["cut"] == ["x"]
    assert f"--plan {file} --name NAME --device-target host\n" in said
    assert "(device only)" in said and "14000.00" in said


def test_no_compiler_is_needed_to_measure(parts: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from zmq_offload.cli.main import main; code = main(sys.argv[1:]);"
        "loaded = {'tvm', 'onnx', 'matplotlib'} & set(sys.modules);"
        "print(loaded, file=sys.stderr); sys.exit(code or len(loaded))"
    )
    arguments = ["profile", str(parts), "--save", str(tmp_path / "d.json"), "--repeat", "3", "--quiet"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_parts_for_another_cpu_or_another_tvm_are_refused(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zmq_offload.artifacts.cpu.this_cpu", lambda: ("aarch64", frozenset({"asimd"})))
    with pytest.raises(FailedPrecondition, match="was built for x86_64, this CPU is aarch64"):
        measure_parts(parts, 1, 3)
    monkeypatch.setattr("zmq_offload.runtime.tvm_library.version", lambda: "0.99.0")
    with pytest.raises(FailedPrecondition, match=r"was built by TVM .*, this is TVM 0\.99\.0"):
        measure_parts(parts, 1, 3)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"format_version": 9}, "format_version is 9, this release reads 1"),
        ({"points": []}, "points has 0 points; expected the inputs"),
        ({"cpu_name": "a\nb"}, "cpu_name is 'a\\nb'; expected a name of LLVM"),
        ({"libraries": []}, "libraries: no library has the function 'after_1'"),
        ({"libraries": [{"file": "../parts0.so", "checksum": "sha256:0", "functions": {}}]}, "no library has"),
    ],
)
def test_a_damaged_folder_is_refused(parts: Path, tmp_path: Path, edit: dict[str, object], message: str) -> None:
    described = json.loads((parts / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps(described | edit))
    with pytest.raises(FailedPrecondition, match="make the folder again with") as caught:
        Parts.read(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("shape", [[3, 3, 16, 16], [-1, 3, 16, 16]])
def test_a_function_takes_what_its_point_has(parts: Path, tmp_path: Path, shape: list[int]) -> None:
    shutil.copytree(parts, tmp_path / "parts")
    described = json.loads((parts / DESCRIPTION).read_text())
    described["libraries"][0]["functions"]["whole"][0]["shape"] = shape
    (tmp_path / "parts" / DESCRIPTION).write_text(json.dumps(described))
    with pytest.raises(FailedPrecondition, match="the function 'whole' takes other tensors than its point has"):
        measure_parts(tmp_path / "parts", 1, 3)


def test_a_function_that_the_library_lacks_is_said(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts, tmp_path / "parts")
    described = json.loads((parts / DESCRIPTION).read_text())
    described["libraries"][0]["functions"]["other"] = []
    (tmp_path / "parts" / DESCRIPTION).write_text(json.dumps(described))
    with pytest.raises(FailedPrecondition, match=r"parts0\.so cannot be loaded: Module has no function 'other'"):
        measure_parts(tmp_path / "parts", 1, 3)


def test_a_library_that_was_changed_is_refused(parts: Path, tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION).write_bytes((parts / DESCRIPTION).read_bytes())
    with pytest.raises(FailedPrecondition, match=r"parts0\.so cannot be read: No such file"):
        Parts.read(tmp_path)
    (tmp_path / "parts0.so").write_bytes(b"another")
    with pytest.raises(FailedPrecondition, match=r"parts0\.so is not the file that was written with it"):
        Parts.read(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{parts}"], "has parts to measure; give --save FILE for their times"),
        (["{parts}", "--parts", "{free}"], "--parts is for model files"),
        (["{convnet}", *INPUT, "--parts", "{parts}"], "exists; name a folder that does not, or remove it"),
        (["{convnet}", *INPUT, "--parts", "{free}", "--save", "{free}"], "--parts measures nothing"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: list[str], message: str, parts: Path, convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [a.format(parts=parts, convnet=convnet, free=tmp_path / "free") for a in arguments]
    assert main(["profile", *given, "--quiet", "-o", str(tmp_path / "picture.png")]) == 1
    assert message in capsys.readouterr().err
