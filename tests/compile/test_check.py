"""`compile --check`: the compiled model computes what the ONNX file means, or nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tests.support import onnx_models
from zmq_offload.cli.main import main
from zmq_offload.compile import Compiled, Region, compile_model
from zmq_offload.compile.accuracy import read_samples
from zmq_offload.compile.operators import converters
from zmq_offload.compile.reference import random_inputs
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec

SHAPES = {"x": (1, 3, 12, 12)}
BOARD = '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}'


@pytest.fixture
def wrong_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import Relu with another slope for negative values, as if an attribute was ignored."""
    monkeypatch.setitem(converters.CONVERTERS, "Relu", lambda bb, node: relax.op.nn.leakyrelu(node.inputs[0], 0.1))


def test_a_right_model_passes_and_reports_its_differences(compiled_convnet: Compiled) -> None:
    compiled = compiled_convnet
    assert compiled.check is not None and compiled.check.skipped is None
    assert compiled.check.against.startswith("ONNX Runtime ") and compiled.check.on == "a random input"
    (loss,) = compiled.check.losses
    assert loss.output.name == "y" and loss.absolute < 1e-4 and loss.largest > 0


def test_without_onnx_runtime_it_is_onnx_reference(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    compiled = compile_model(mlp, inputs={"x": (2, 8)}, cut="h2", name="mlp", output=tmp_path, check=True)
    assert compiled.check is not None and compiled.check.against.startswith("onnx.reference ")


@pytest.mark.usefixtures("wrong_relu")
def test_a_wrong_result_fails_with_output_and_place_and_writes_nothing(convnet: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"output 'y' is off by \S+ at \[0, \d+.*right is .*--no-check"):
        compile_model(convnet, inputs=SHAPES, cut="features", name="net", output=tmp_path / "dist", check=True)
    assert not (tmp_path / "dist").exists()


@pytest.mark.usefixtures("wrong_relu")
def test_the_command_checks_unless_told_not_to(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compile", str(convnet), "--input", "x=1,3,12,12", "--cut", "features", "--name", "net", "--quiet"]
    arguments += ["-o", str(tmp_path / "dist")]
    assert main(arguments) != 0
    assert "does not compute what" in capsys.readouterr().err
    assert main([*arguments, "--no-check"]) == 0
    assert "check:" not in capsys.readouterr().out


@pytest.mark.parametrize("wire", ["float16", "int8"])
def test_the_loss_of_an_encoding_passes(convnet: Path, tmp_path: Path, wire: Any) -> None:
    compiled = compile_model(convnet, inputs=SHAPES, cut="features", name="net", wire=wire, output=tmp_path, check=True)
    assert compiled.check is not None and compiled.check.losses[0].absolute > 0


def test_given_inputs_are_those_that_are_tried(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", onnx_models.random(1, 3, 12, 12))
    arguments = ["compile", str(convnet), "--input", "x=1,3,12,12", "--cut", "features", "--name", "net", "--quiet"]
    arguments += ["-o", str(tmp_path / "dist"), "--check-input"]
    assert main([*arguments, f"y={tmp_path / 'x.npy'}"]) != 0
    assert "the model's inputs are 'x'" in capsys.readouterr().err
    assert main([*arguments, f"x={tmp_path / 'x.npy'}"]) == 0
    assert "on a given input" in capsys.readouterr().out


def test_symbolic_dimensions_are_tried_with_two_extents(mlp: Path, tmp_path: Path) -> None:
    compiled = compile_model(mlp, inputs={"x": ("N", 8)}, cut="h2", name="mlp", output=tmp_path, check=True)
    assert compiled.check is not None and compiled.check.on == "2 random inputs"


def test_regions_and_a_new_subgraph_are_checked_with_the_device_that_is_there(tmp_path: Path) -> None:
    model = onnx_models.branches(tmp_path / "m.onnx")
    shapes = {"x": (1, 3, 8, 8)}
    left, right = Region("left", ["features"], ["left"]), Region("right", ["features"], ["right"])
    first = compile_model(model, inputs=shapes, regions=[left, right], output=tmp_path, check=True)
    again = compile_model(model, inputs=shapes, regions=[left, right], output=tmp_path, only_subgraph=True, check=True)
    for compiled in (first, again):
        assert compiled.check is not None and compiled.check.skipped is None and compiled.check.losses
    one = compile_model(model, inputs=shapes, regions=[left], output=tmp_path, only_subgraph=True, check=True)
    assert one.check is not None and "also calls right" in str(one.check.skipped)


def test_for_another_cpu_it_is_skipped_with_the_reason(convnet: Path, tmp_path: Path) -> None:
    compiled = compile_model(
        convnet, inputs=SHAPES, cut="features", name="net", output=tmp_path, check=True, target=BOARD
    )
    assert compiled.check is not None and "cannot run code for the target" in str(compiled.check.skipped)


def test_a_file_that_onnx_runtime_cannot_run_is_not_checked(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Equal", ["h", "h"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.BOOL, [4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=99), tmp_path / "m.onnx")
    compiled = compile_model(tmp_path / "m.onnx", cut="h", name="m", output=tmp_path / "dist", check=True)
    assert compiled.check is not None and "ONNX Runtime cannot run the file" in str(compiled.check.skipped)


def test_random_inputs_are_of_the_kind_that_the_model_takes() -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["rows"]),
        helper.make_node("Log", ["x"], ["l"]),
    ]
    weights = [numpy_helper.from_array(np.zeros((3, 2), "f4"), "table")]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], weights))
    specs = [
        TensorSpec("ids", "INT32", (500,)),
        TensorSpec("x", "FP32", (-1, -1)),
        TensorSpec("z", "FP32", (-1, -1)),
        TensorSpec("mask", "INT64", (50,)),
        TensorSpec("image", "UINT8", (500,)),
        TensorSpec("flag", "BOOL", (50,)),
    ]
    dims = {"x": ("N", "M"), "z": ("N", "N")}
    sample = random_inputs(model, specs, dims, 0)
    assert set(sample["ids"]) == {0, 1, 2} and sample["ids"].dtype == np.int32
    assert (sample["x"] > 0).all() and (sample["z"] < 0).any()
    assert sample["x"].shape[0] == sample["z"].shape[0] == sample["z"].shape[1]
    assert set(sample["mask"]) == {0, 1} and sample["image"].max() > 200 and sample["flag"].dtype == bool
    assert random_inputs(model, specs, dims, 1)["x"].shape != sample["x"].shape


def test_samples_that_do_not_fit_are_refused(convnet: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="the model's inputs are 'x'"):
        compile_model(
            convnet, inputs=SHAPES, cut="features", name="net", output=tmp_path, check=[{"q": np.zeros(1, "f4")}]
        )


def masked(path: Path, mask: float) -> Path:
    """y = Relu(x) where x is above a limit, else `mask`; the cut is at h."""
    nodes = [
        helper.make_node("Mul", ["x", "one"], ["h"]),
        helper.make_node("Greater", ["h", "limit"], ["seen"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Sub", ["r", "one"], ["s"]),
        helper.make_node("Where", ["seen", "s", "mask"], ["y"]),
    ]
    weights = {"one": 1, "limit": -1, "mask": mask}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])],
        [numpy_helper.from_array(np.float32(v), k) for k, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("mask", [float(np.finfo("f4").min), -1e9])
def test_a_mask_hides_no_difference(tmp_path: Path, mask: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = masked(tmp_path / "m.onnx", mask)
    compiled = compile_model(model, cut="h", name="m", output=tmp_path / "right", check=True)
    assert compiled.check is not None and compiled.check.losses[0].largest < 10
    # The mask is right, the other elements are not.
    monkeypatch.setitem(converters.CONVERTERS, "Relu", lambda bb, node: relax.op.nn.leakyrelu(node.inputs[0], 0.1))
    with pytest.raises(FailedPrecondition, match=r"output 'y' is off by 0\.\d+"):
        compile_model(model, cut="h", name="m", output=tmp_path / "wrong", check=True)


def test_a_wrong_mask_is_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = masked(tmp_path / "m.onnx", -1e9)

    def half(bb: Any, node: Any) -> Any:
        seen, shown, mask = node.inputs
        return relax.op.where(seen, shown, bb.normalize(relax.op.multiply(mask, relax.const(0.5, "float32"))))

    monkeypatch.setitem(converters.CONVERTERS, "Where", half)
    with pytest.raises(FailedPrecondition, match="output 'y' is off by 5e"):
        compile_model(model, cut="h", name="m", output=tmp_path, check=True)


def test_outputs_without_a_finite_number_are_reported(convnet: Path, tmp_path: Path) -> None:
    sample = np.full((1, 3, 12, 12), np.nan, "f4")
    compiled = compile_model(convnet, inputs=SHAPES, cut="features", name="net", output=tmp_path, check=[sample])
    assert "only NaN and infinities, the same in both" in str(compiled.check)


def test_one_sample_has_each_input_once(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3, "f4"))
    with pytest.raises(InvalidArgument, match="'x' is given twice; write each of several samples"):
        read_samples([f"x={tmp_path / 'x.npy'}"] * 2)
