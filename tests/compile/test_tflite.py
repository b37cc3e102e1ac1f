"""TFLite files: compiled, cut, and compared with NumPy and, where it is installed, LiteRT."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite
from tvm.ir import Call

from tests.support import onnx_models
from tests.support.local_client import LocalClient
from tests.support.tflite_models import (
    Writer,
    channels,
    channels_computed,
    computed,
    dynamic_range,
    full_integer,
    network,
)
from zmq_offload.cli.main import main
from zmq_offload.compile import compile_model, compile_uncut, list_cuts
from zmq_offload.compile.build import prepared
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.target import host_target
from zmq_offload.compile.uncut import UncutModel
from zmq_offload.device.model import load
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.schedules.layout import channels_last
from zmq_offload.schedules.machine import machine_of

PRODUCTS = ("relax.nn.conv2d", "relax.matmul")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("tflite") / "m.tflite")


def test_it_is_cut_at_its_tensors_and_computes_the_same(path: Path, tmp_path: Path) -> None:
    compiled = compile_model(path, cut="conv", name="m", output=tmp_path)
    assert [str(t) for t in compiled.manifest.inputs] == ["image FP32[1,8,8,3]"]
    assert [str(t) for t in compiled.models[0].inputs] == ["conv FP32[1,4,4,4]"]
    image = onnx_models.random(1, 8, 8, 3, seed=9)
    with load(compiled.device, client=LocalClient(tmp_path / "repository")) as model:
        np.testing.assert_allclose(model(image), computed(image), atol=1e-5)


def test_convolutions_of_channels_have_kernels(tmp_path: Path) -> None:
    path = channels(tmp_path / "m.tflite")
    model = read_model(path)
    image = onnx_models.random(1, 9, 8, 4, seed=9)
    compile_uncut(path, tmp_path / "m.so")
    np.testing.assert_allclose(UncutModel(tmp_path / "m.so")(image)[0], channels_computed(image), atol=1e-5)
    kernels = channels_last(prepared(model.uncut({})), machine_of(host_target()))
    assert "R.nn." not in kernels.script()


def test_a_full_integer_model_is_computed_in_integers_as_litert_does(tmp_path: Path) -> None:
    path = full_integer(tmp_path / "m.tflite")
    model = read_model(path)
    bindings = [b for block in prepared(model.uncut({}))["main"].body.blocks for b in block.bindings]
    products = [b.value for b in bindings if isinstance(b.value, Call) and b.value.op.name in PRODUCTS]
    assert len(products) == 3 and all(str(p.ty.dtype) == "int32" for p in products)
    pytest.importorskip("ai_edge_litert")
    compile_uncut(path, tmp_path / "m.so")
    run, ours = model.reference().run, UncutModel(tmp_path / "m.so")
    for seed in range(4):
        image = np.random.default_rng(seed).integers(-128, 128, (1, 8, 8, 3)).astype("i1")
        (right,) = run({"image": image}).values()
        apart = np.abs(ours(image)[0].astype("i4") - right)
        assert apart.max() <= 2, apart  # softmax of bytes is a table in LiteRT


def test_weights_of_bytes_in_a_float_model_are_floats(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    path = dynamic_range(tmp_path / "m.tflite")
    image = onnx_models.random(1, 8, 8, 3, seed=9)
    reference = read_model(path).reference()
    (right,) = reference.run({"image": image}).values()
    compile_uncut(path, tmp_path / "m.so")
    # LiteRT rounds activations to bytes.
    np.testing.assert_allclose(UncutModel(tmp_path / "m.so")(image)[0], right, atol=0.02 * np.abs(right).max())
    assert main(["compile", str(path), "--cut", "deep", "--name", "m", "-o", str(tmp_path / "dist")]) == 0


def test_its_cuts_are_listed_and_it_can_be_planned_for(path: Path) -> None:
    assert [point.name for point in list_cuts(path)] == ["image", "conv", "mean", "scores"]
    origins = read_model(path).origins()
    assert origins.weights == {"filter", "bias", "matrix", "axes"}
    assert origins.sources["scores"] == ("mean", "matrix")
    assert origins.inputs == {"image"}


def test_an_open_dimension_can_be_given(path: Path, tmp_path: Path) -> None:
    compile_uncut(path, tmp_path / "m.so", inputs={"image": (3, 8, 8, 3)})
    images = onnx_models.random(3, 8, 8, 3, seed=9)
    np.testing.assert_allclose(UncutModel(tmp_path / "m.so")(images)[0], computed(images), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 9, 3), (1, 8, 8), ("N", 8, 8, 3)])
def test_other_shapes_than_the_file_has_are_refused(path: Path, shape: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"the file has \[\?,8,8,3\]; give numbers, others only where it has"):
        list_cuts(path, inputs={"image": shape})


def test_an_unknown_input_is_suggested(path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"no input 'imag'; it has .*; did you mean 'image'\?"):
        list_cuts(path, inputs={"imag": (1, 8, 8, 3)})


def test_the_check_runs_litert(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ai_edge_litert")
    assert main(["compile", str(path), "--cut", "conv", "--name", "m", "-o", str(tmp_path)]) == 0
    assert "check:    against the file in LiteRT" in capsys.readouterr().out


def test_without_litert_the_check_says_how_to_install_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert", None)
    compiled = compile_model(path, cut="conv", name="m", output=tmp_path, check=True)
    assert compiled.check is not None
    assert compiled.check.skipped == "LiteRT is not installed; pip install ai-edge-litert"


def test_without_the_package_the_extra_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zmq_offload.compile.tflite.model", None)
    with pytest.raises(FailedPrecondition, match=r"pip install 'zmq-offload\[compile\]'"):
        list_cuts(path)


def test_a_damaged_file_is_one_line(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for size in range(8, len(whole), 97):
        (tmp_path / "m.tflite").write_bytes(whole[:size])
        with pytest.raises(InvalidArgument) as caught:
            list_cuts(tmp_path / "m.tflite")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_of_a_file_may_be_wrong(path: Path, tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(10):
        data = bytearray(path.read_bytes())
        for place in generator.integers(8, len(data), 4):
            data[place] = generator.choice([0, 1, 127, 255])
        (tmp_path / "m.tflite").write_bytes(data)
        with contextlib.suppress(InvalidArgument):  # or nothing is wrong with it
            list_cuts(tmp_path / "m.tflite")


def test_state_and_unknown_operators_are_refused_by_name(tmp_path: Path) -> None:
    for code, words in (
        (tflite.BuiltinOperator.VAR_HANDLE, r"keeps state from one call to the next \(VAR_HANDLE\)"),
        (tflite.BuiltinOperator.UNIQUE, "UNIQUE"),
    ):
        writer = Writer()
        writer.tensor("x", (2, 3))
        writer.tensor("y", (2, 3))
        writer.operator(code, ["x"], ["y"])
        with pytest.raises(InvalidArgument, match=words):
            list_cuts(writer.write(tmp_path / "m.tflite", ["x"], ["y"]))
