"""An int8 model is made of a float32 one, measured, cut at bytes, and refused where its input is wrong."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.support import onnx_models
from tests.support import quantized_models as q
from tests.support.local_client import LocalClient
from zmq_offload.cli.main import main
from zmq_offload.compile import compile_model
from zmq_offload.compile.quantization.quality import Quality, measure
from zmq_offload.compile.quantization.quantize import quantize_model
from zmq_offload.device.model import load
from zmq_offload.errors import FailedPrecondition, InvalidArgument

Array = np.ndarray[Any, Any]
SHAPES = {"x": (1, 3, 12, 12)}


def samples(count: int, *shape: int) -> list[Array]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape or SHAPES["x"]).astype("f4") for _ in range(count)]


def test_the_command_quantizes_measures_and_sends_bytes(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "many.npy", np.concatenate(samples(12)))
    arguments = ["compile", str(convnet), "--input", "x=1,3,12,12", "--cut", "features", "--name", "net"]
    arguments += ["--quantize", "int8", "--calibrate", str(tmp_path / "many.npy"), "-o", str(tmp_path / "dist")]
    assert main(arguments) == 0
    said, progress = capsys.readouterr()
    assert "quantize to int8" in progress
    assert "convnet.int8.onnx, calibrated on 9 samples; against float32, on 3 other samples" in said
    assert "signal to noise" in said and "UINT8[" in said and "check:    against the file in ONNX Runtime" in said
    used = {n.op_type for n in onnx.load(tmp_path / "dist" / "convnet.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= used


def test_a_module_is_cut_at_its_quantized_tensor(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(convnet)
    for node in model.graph.node:
        if "features" in node.output:
            entry = node.metadata_props.add()
            entry.key, entry.value = "pkg.torch.onnx.name_scopes", str(["", "backbone", "node"])
    onnx.save(model, convnet)
    np.save(tmp_path / "many.npy", np.concatenate(samples(12)))
    arguments = ["compile", str(convnet), "--input", "x=1,3,12,12", "--cut", "backbone", "--name", "net"]
    arguments += ["--quantize", "int8", "--calibrate", str(tmp_path / "many.npy"), "-o", str(tmp_path / "dist")]
    assert main(arguments) == 0
    assert "takes   features_QuantizeLinear_Output UINT8[" in capsys.readouterr().out


def test_the_int8_model_is_near_the_float32_one(convnet: Path, tmp_path: Path) -> None:
    compiled = compile_model(
        convnet,
        inputs=SHAPES,
        cut="features",
        name="net",
        output=tmp_path,
        quantize="int8",
        calibrate=[{"x": sample} for sample in samples(12)],
        check=True,
    )
    assert compiled.quantized is not None
    for output in compiled.quantized.outputs:
        assert output.decibels > 15 and output.cosine > 0.98 and 0 < output.mean <= output.largest * 10
    (spec,) = compiled.models[0].inputs
    assert spec.datatype == "UINT8" and spec.name == compiled.quantized.tensors["features"]
    x = samples(1)[0]
    plain = compile_model(convnet, inputs=SHAPES, cut="features", name="net", output=tmp_path / "plain")
    found, right = (load(c.device, client=LocalClient(c.subgraphs[0].parent.parent))(x) for c in (compiled, plain))
    for ours, theirs in zip(np.atleast_1d(found), np.atleast_1d(right), strict=True):
        assert np.linalg.norm(ours - theirs) < 0.2 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "no samples are given"),
        (samples(1), "1 sample is given; give at least 2"),
        (samples(2, 1, 3, 12, 13), r"sample 1: .* has shape \[1, 3, 12, 13\]"),
        ([samples(1)[0], samples(1)[0].astype("f8")], "sample 2: .* datatype FP64"),
        ([samples(1)[0], np.full(SHAPES["x"], np.nan, "f4")], "sample 2 has NaN or infinity in input 'x'"),
        ([samples(1)[0], {"y": samples(1)[0]}], "sample 2: arrays 'y' are given"),
    ],
)
def test_bad_samples_are_refused(given: list[Any], says: str, convnet: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=says):
        quantize_model(convnet, given, tmp_path / "m.onnx", inputs=SHAPES)


def test_models_that_cannot_be_quantized_are_refused(tmp_path: Path) -> None:
    file, _ = q.conv_net(tmp_path / "quantized.onnx")
    with pytest.raises(InvalidArgument, match=r"quantized.onnx is quantized already"):
        quantize_model(file, samples(2, 1, 3, 16, 16), tmp_path / "m.onnx")
    plain = onnx_models.write(tmp_path / "plain.onnx", [q.node("Relu", ["x"], "y")], {"x": (2,)}, {"y": (2,)}, {})
    with pytest.raises(InvalidArgument, match="has nothing to quantize"):
        quantize_model(plain, samples(2, 2), tmp_path / "m.onnx")


def test_a_model_that_int8_makes_too_inaccurate_is_refused(tmp_path: Path) -> None:
    """One value takes all of the range; the rest becomes zero."""
    weight = np.full((4, 4), 1e-3, "f4")
    nodes = [q.node("MatMul", ["x", "w"], "h"), q.node("MatMul", ["h", "v"], "y")]
    weights = {"w": weight, "v": np.diag([0, 1, 1, 1]).astype("f4")}
    weights["w"][:, 0] = 1e4
    file = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": (2, 4)}, {"y": (2, 4)}, weights)
    given = samples(4, 2, 4)
    with pytest.raises(FailedPrecondition, match=r"too inaccurate: y: .* dB.*--no-check"):
        quantize_model(file, given, tmp_path / "q.onnx")
    assert quantize_model(file, given, tmp_path / "q.onnx", check=False).outputs[0].decibels < 10


def test_a_cut_before_a_relu_moves_behind_it(tmp_path: Path) -> None:
    nodes = [q.node("MatMul", ["x", "w"], "h"), q.node("Relu", ["h"], "r"), q.node("MatMul", ["r", "v"], "y")]
    weights = {"w": onnx_models.random(8, 8), "v": onnx_models.random(8, 8, seed=1)}
    file = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": (2, 8)}, {"y": (2, 8)}, weights)
    quantized = quantize_model(file, samples(4, 2, 8), tmp_path / "q.onnx", keep=["h", "r", "x"])
    assert quantized.tensors == {n: f"{t}_QuantizeLinear_Output" for n, t in (("h", "r"), ("r", "r"), ("x", "x"))}


def test_a_missing_package_is_named(convnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "onnxruntime" and rest[2] == ("quantization",):
            raise ImportError("No module named 'onnxruntime'")
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FailedPrecondition, match=r"pip install 'zmq-offload\[quantize\]'"):
        quantize_model(convnet, samples(2), tmp_path / "m.onnx", inputs=SHAPES)


def test_both_options_are_needed(convnet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compile", str(convnet), "--cut", "features", "--name", "m", "--quantize", "int8"])
    assert "--quantize and --calibrate go together" in capsys.readouterr().err


def test_quality_is_measured_over_all_samples() -> None:
    right, other = np.array([[1.0, 0.0], [3.0, 4.0]], "f4"), np.array([[1.0, 0.5], [4.5, 4.0]], "f4")
    found = measure("y", [(right[:1], other[:1]), (right[1:], other[1:])])
    assert found == Quality("y", 1.5 / 4, 2 / 8, pytest.approx(found.cosine), pytest.approx(found.decibels), 0.5)
    assert found.decibels == pytest.approx(10 * np.log10(26 / 2.5)) and 0.9 < found.cosine < 1
    assert measure("y", [(right, right)]).decibels == np.inf
    assert measure("y", [(right, right[:1])]).decibels == -np.inf
