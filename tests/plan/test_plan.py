"""`zmq-offload plan` on small models: measurements, rules, files and errors. No speed is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import onnx_models
from zmq_offload.cli.main import main
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.target import host_target
from zmq_offload.errors import InvalidArgument
from zmq_offload.plan import confirm, planning
from zmq_offload.plan.costs import WIRES, Overhead
from zmq_offload.plan.cuttable import cuttable
from zmq_offload.plan.files import Plan
from zmq_offload.plan.halves import measure_halves
from zmq_offload.plan.restrictions import rules_of
from zmq_offload.plan.turns import Turns

SHAPE = {"x": (1, 3, 16, 16)}
LINK = ["--bandwidth", "50Mbit", "--rtt", "10ms"]


@pytest.fixture(autouse=True)
def no_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not start brokers and workers; test_several_tensors.py and tests/integration/test_use_case.py do."""
    monkeypatch.setattr(planning, "measure_overhead", lambda: Overhead(0.0005, 1e-9))
    monkeypatch.setattr(confirm, "measure_turns", lambda *_: Turns(0.002, 0.001, 0.001))
    monkeypatch.setenv("TVM_NUM_THREADS", "1")


def plan(model: Path, folder: Path, *options: str) -> int:
    always = ["--server-threads", "1", "--repeat", "3", "--quiet", "-o", str(folder / "plan.png")]
    return main(["plan", str(model), "--input", "x=1,3,16,16", *LINK, *always, *options])


def test_the_points_of_a_model_and_the_times_around_them(convnet: Path) -> None:
    model = cuttable(import_onnx(convnet, SHAPE))
    # conv1 and relu1 count as one cut, as do the operators after the second convolution: no products between them.
    assert [p.name for p in model.points] == ["x", "relu1", "inner_flat", "inner_logits", "y"]
    (times,) = measure_halves(model, host_target(), [1], 3)
    assert times.before[0] == times.after[-1] == 0
    assert times.before[-1] == times.after[0] == times.whole > 0
    assert all(t > 0 for t in (*times.before[1:], *times.after[:-1]))
    for wire in WIRES:
        coded = times.encode[wire], times.decode[wire]
        assert all((t > 0) == (wire != "float32") for own in coded for t in own)


def test_a_model_of_symbolic_shapes_is_refused(convnet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidArgument, match=r"input x .* has symbolic dimensions; give numbers with --input x="):
        cuttable(import_onnx(convnet, {"x": ("N", 3, 16, 16)}))


def test_plan_is_printed_drawn_saved_and_compiled(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    # For a small model no split pays; the rules exclude the device alone.
    options = ["--device-slowdown", "8", "--seal", "w3", "--private", "x", "--confirm", "1", "--save", str(file)]
    assert plan(convnet, tmp_path, *options) == 0
    said = capsys.readouterr().out
    assert "one thread of this machine, slowed down 8 times" in said
    assert "50Mbit each way, round trip 10 ms" in said
    assert "measured, chosen" in said and "measured, not allowed" in said
    assert "Staying local would have the better latency" in said and "the device would hold w3" in said
    assert f"--plan {file}" in said
    with Image.open(tmp_path / "plan.png") as image:
        assert len(image.getcolors(1 << 20) or ()) > 20
    saved = Plan.read(file)
    assert saved.cut in {("relu1",), ("inner_flat",)}
    assert saved.predicted["latency"] > 0.01
    # Another option must not put sealed weights on the device.
    assert saved.sealed == ("w3",)
    copying = ["compile", str(convnet), "--plan", str(file), "--name", "head", "-o", str(tmp_path / "c")]
    assert main([*copying, "--with-fallback"]) == 1
    assert "keeps 'w3' off the device (--seal), and --with-fallback would put a copy there" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()

    dist = tmp_path / "dist"
    assert main(["compile", str(convnet), "--plan", str(file), "--name", "head", "-o", str(dist), "--quiet"]) == 0
    manifest = json.loads((dist / "device" / "manifest.json").read_text())
    (part,) = manifest["offloaded"]
    sent = {t["name"]: t["datatype"] for t in part["inputs"]}
    assert sent[saved.cut[0]] == {"float32": "FP32", "float16": "FP16", "int8": "INT8"}[saved.wire]
    assert f"accuracy: {saved.wire}" in capsys.readouterr().out or saved.wire == "float32"


def test_a_device_as_fast_as_the_server_keeps_the_model(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    assert plan(convnet, tmp_path, "--confirm", "0", "--save", str(file)) == 0
    assert "No cut beats staying local" in capsys.readouterr().out
    assert Plan.read(file).local
    assert main(["compile", str(convnet), "--plan", str(file), "--name", "head", "-o", str(tmp_path / "d")]) == 1
    assert "keeps the whole model on the device" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_times_are_carried_over_in_profiles(convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "phone.json"
    arguments = ["--input", "x=1,3,16,16", "--repeat", "3", "--quiet", "-o", str(tmp_path / "p.png")]
    assert main(["profile", str(convnet), *arguments, "--threads", "1", "--save", str(file)]) == 0
    slow = json.loads(file.read_text())
    slow["machine"] = "a phone"
    for what in ("before", "behind"):
        slow["seconds"][what] = [100_000 * t for t in slow["seconds"][what]]
    file.write_text(json.dumps(slow))
    capsys.readouterr()
    assert plan(convnet, tmp_path, "--device-profile", str(file), "--server-profile", str(file)) == 0
    said = capsys.readouterr().out
    assert said.count("a phone, 1 thread (measured there:") == 2
    several = ["--cuts", "2", "--save", str(tmp_path / "plan.json")]
    assert plan(convnet, tmp_path, "--device-profile", str(file), "--confirm", "1", *several) == 0
    said = capsys.readouterr().out
    assert "No cut beats" not in said
    assert "3.12Mbit" in said and "800Mbit" in said and f"--cuts {tmp_path / 'plan.json'}" in said
    cuts = Plan.read(tmp_path / "plan.json").cuts
    assert 1 <= len(cuts) <= 2 and all(set(own.predicted) == set(own.wires) for own in cuts)


def test_sealed_weights_and_private_inputs(convnet: Path) -> None:
    model = cuttable(import_onnx(convnet, SHAPE))
    origins = read_model(convnet).origins()
    rules = rules_of(model, origins, ["w3", "w2"], ["x"])
    assert [sorted(names) for names in rules.sealed_before] == [[], [], ["w2"], ["w2", "w3"], ["w2", "w3"]]
    assert [sorted(names) for names in rules.sealed_after] == [["w2", "w3"], ["w2", "w3"], ["w3"], [], []]
    assert [sorted(names) for names in rules.raw] == [["x"], [], [], [], []]
    with pytest.raises(InvalidArgument, match=r"--seal: the model has no weight 'w33'; did you mean 'w3'"):
        rules_of(model, origins, ["w33"], [])
    with pytest.raises(InvalidArgument, match=r"--private: the model has no input 'y'; the nearest are 'x'"):
        rules_of(model, origins, [], ["y"])


def test_an_input_that_was_only_scaled_and_turned_is_still_raw(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["centered"]),
        helper.make_node("Div", ["centered", "deviation"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["turned", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    weights = {
        "mean": onnx_models.random(4, seed=1),
        "deviation": onnx_models.random(4, seed=2),
        "w": onnx_models.random(8, 8, seed=3),
    }
    file = onnx_models.write(tmp_path / "scaled.onnx", nodes, {"x": [8, 4]}, {"y": [4, 8]}, weights)
    model = cuttable(import_onnx(file, {}))
    assert [p.name for p in model.points] == ["x", "turned", "h", "y"]
    rules = rules_of(model, read_model(file).origins(), [], ["x"])
    assert [bool(names) for names in rules.raw] == [True, True, False, False]


@pytest.mark.parametrize("operator", ["Relu", "Sqrt", "BatchNormalization", "InstanceNormalization", "Gather", "PRelu"])
def test_an_input_of_which_each_number_was_changed_by_itself_is_still_raw(tmp_path: Path, operator: str) -> None:
    from onnx import helper

    one = np.ones(3, "f4")
    weights = {
        "BatchNormalization": {"scale": 2 * one, "b": one, "mean": one, "variance": 3 * one},
        "InstanceNormalization": {"scale": 2 * one, "b": one},
        "Gather": {"order": np.array([2, 1, 0])},  # RGB as BGR
        "PRelu": {"slope": one[:, None, None] / 9},
    }.get(operator, {})
    options = {"axis": 1} if operator == "Gather" else {}
    nodes = [
        helper.make_node(operator, ["x", *weights], ["changed"], **options),
        helper.make_node("Conv", ["changed", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    shapes = {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}
    weights = {**weights, "w": onnx_models.random(4, 3, 1, 1)}
    file = onnx_models.write(tmp_path / "m.onnx", nodes, *shapes, weights)
    model = cuttable(import_onnx(file, {}))
    assert [p.name for p in model.points] == ["x", "changed", "h", "y"]
    rules = rules_of(model, read_model(file).origins(), [], ["x"])
    assert [bool(names) for names in rules.raw] == [True, True, False, False]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--bandwidth", "50"], "bandwidth '50' has no unit; did you mean 50Mbit?"),
        (["--rtt", "10"], "time '10' has no unit; did you mean 10ms?"),
        (["--device-slowdown", "8", "--device-profile", "f"], "not allowed with argument"),
        (["--device-slowdown", "0.5"], "'0.5' is not a factor from 1 to 10000"),
        (["--objective", "speed"], "invalid choice: 'speed'"),
    ],
)
def test_wrong_usage(
    options: list[str], says: str, convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan(convnet, tmp_path, *options)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_what_is_refused_before_anything_slow(
    convnet: Path, mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*options: str) -> str:
        assert plan(convnet, tmp_path, *options) == 1
        return capsys.readouterr().err

    monkeypatch.setattr("zmq_offload.plan.halves.measure_halves", None)
    assert "no weight 'w9'; the nearest are" in refused("--seal", "w9")
    # Only the input comes before the first convolution's weight, and the input is private.
    said = refused("--seal", "w1", "--private", "x")
    assert "--seal 'w1' excludes device only" in said and "--private 'x' excludes sending 'x'" in said
    assert "--seal 'w1' excludes cutting at 'relu1'" in said
    other = tmp_path / "other.json"
    from zmq_offload.plan.halves import take_profile

    monkeypatch.undo()
    monkeypatch.setattr(planning, "measure_overhead", Overhead)
    take_profile(mlp, {"x": (2, 8)}, 1, 3).write(other)
    assert "other.json belongs to another model, mlp.onnx, and not to this convnet.onnx" in refused(
        "--device-profile", str(other)
    )
    other.write_text(json.dumps(json.loads(other.read_text()) | {"format_version": 7}))
    assert "format_version is 7, this release reads 1" in refused("--server-profile", str(other))
    assert main(["profile", str(tmp_path), "--save", str(other)]) == 1
    assert "--save is for model files" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compile", str(convnet), "--plan", str(other), "--cut", "relu1", "--name", "n"])
    assert "--plan sets --cut, --until and --wire" in capsys.readouterr().err


def test_every_operator_that_is_held_to_mix_is_one_of_relax() -> None:
    from tvm import ir

    from zmq_offload.plan import restrictions

    for name in restrictions._MIXING:
        assert isinstance(ir.Op.get(name), ir.Op)
