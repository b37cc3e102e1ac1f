"""The loss of accuracy by an encoding is measured and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.local_client import LocalClient, run_uncut
from zmq_offload.cli.main import main
from zmq_offload.compile import Compiled, compile_model
from zmq_offload.compile.accuracy import Loss, compare, measure_losses, named, random_sample, read_sample
from zmq_offload.device.model import load
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.protocol.tensors import TensorSpec

SHAPES = {"x": (1, 3, 12, 12)}
SPECS = (TensorSpec("x", "FP32", (1, 3, 12, 12)),)
BOARD = '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}'


def array(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, "f4")


@pytest.mark.parametrize(
    ("ours", "theirs", "difference", "largest"),
    [
        (array(1, 2.5), array(1, 2), 0.5, 2),
        (array(1, -9), array(1, -9), 0, 9),
        (array(np.nan, np.inf, 1), array(np.nan, np.inf, 2), 1, 2),
        (array(np.nan, 1), array(0, 1), np.inf, 1),
        (array(0, 1), array(np.nan, 1), np.inf, 1),
        (array(np.inf), array(-np.inf), np.inf, 0),
        (array(65504, 1), array(np.inf, 1), np.inf, 1),
        (array(1), array(1, 2), np.inf, 0),
        (array(), array(), 0, 0),
        (np.array([True, False]), np.array([True, True]), 1, 1),
        (np.array([2**40]), np.array([2**40 + 1]), 1, 2**40 + 1),
    ],
)
def test_outputs_are_compared_element_by_element(ours: Any, theirs: Any, difference: float, largest: float) -> None:
    assert compare(ours, theirs) == (difference, largest)


def test_a_loss_is_shown_in_units_and_as_a_fraction_of_the_largest_value() -> None:
    spec = TensorSpec("y", "FP32", (1, 10))
    assert str(Loss(spec, 0.025, 5.0)) == "y FP32[1,10]: off by at most 2.50e-02, 0.50% of the largest value (5)"
    assert Loss(spec, 0.0, 0.0).relative == 0 and Loss(spec, 1e-9, 0.0).relative == float("inf")


def test_what_is_measured_is_the_difference_of_the_split_model(convnet: Path, tmp_path: Path) -> None:
    compiled = compile_model(convnet, inputs=SHAPES, cut="features", name="net", wire="int8", output=tmp_path)
    samples = [{"x": onnx_models.random(1, 3, 12, 12, seed=i)} for i in range(3)]
    (loss,) = measure_losses(convnet, compiled, samples, inputs=SHAPES)
    model = load(compiled.device, client=LocalClient(tmp_path / "repository"))
    expected = [run_uncut(convnet, SHAPES, [s["x"]])[0] for s in samples]
    worst = max(np.abs(model(**s) - e).max() for s, e in zip(samples, expected, strict=True))
    assert loss.absolute == pytest.approx(worst, rel=1e-3) and loss.absolute > 1e-5
    assert loss.largest == pytest.approx(max(np.abs(e).max() for e in expected), rel=1e-5)


def test_the_command_prints_it_for_given_inputs_and_for_random_ones(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compile", str(convnet), "--input", "x=1,3,12,12", "--cut", "features", "--name", "net", "--quiet"]
    arguments += ["-o", str(tmp_path / "dist"), "--force", "--wire", "float16"]
    assert main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == "accuracy: float16 on the wire against the uncut model, on a random input"
    assert said[-1].startswith("  y FP32[1,10]: off by at most ")
    np.savez(tmp_path / "one.npz", x=onnx_models.random(1, 3, 12, 12))
    np.save(tmp_path / "two.npy", onnx_models.random(1, 3, 12, 12, seed=1))
    # The device has another architecture, so that the model is compiled again for this one.
    files = [str(tmp_path / "one.npz"), str(tmp_path / "two.npy")]
    assert main([*arguments, "--device-target", BOARD, "--wire-check", *files]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == "accuracy: float16 on the wire against the uncut model, on 2 given inputs"
    assert 0 < float(said[-1].split("at most ")[1].split(",")[0]) < 1e-2


def test_one_region_that_is_compiled_again_is_measured_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx_models.branches(tmp_path / "branches.onnx")
    arguments = ["compile", str(model), "--input", "x=1,3,8,8", "--wire", "float16", "-o", str(tmp_path), "--quiet"]
    right = ["--region", "right", "--cut", "features", "--until", "right"]
    assert main([*arguments, "--region", "left", "--cut", "features", "--until", "left", *right]) == 0
    assert main([*arguments, "--only-subgraph", *right]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-3] == "accuracy: float16 on the wire against the uncut model, on a random input"
    assert 0 < float(said[-1].split("at most ")[1].split(",")[0]) < 1e-2


def test_libraries_of_another_cpu_are_not_run(convnet: Path, tmp_path: Path) -> None:
    compiled = compile_model(
        convnet, inputs=SHAPES, cut="features", name="net", output=tmp_path, device_target=BOARD, wire="float16"
    )
    with pytest.raises(FailedPrecondition, match="built for aarch64"):
        measure_losses(convnet, compiled, [random_sample(SPECS)], inputs=SHAPES)


def test_files_that_are_not_inputs_are_refused_before_anything_is_compiled(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 broken")
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    for name in ("text.npy", "cut.npz", "objects.npy", "none.npy"):
        with pytest.raises(InvalidArgument, match=f"{name} cannot be read"):
            read_sample(tmp_path / name)
    np.savez(tmp_path / "name.npz", y=np.zeros((1, 3, 12, 12), "f4"))
    np.save(tmp_path / "shape.npy", np.zeros((1, 3, 12, 13), "f4"))
    np.save(tmp_path / "datatype.npy", np.zeros((1, 3, 12, 12), "f8"))
    for name in ("text.npy", "cut.npz", "objects.npy", "none.npy", "name.npz", "shape.npy", "datatype.npy"):
        arguments = ["compile", str(convnet), "--input", "x=1,3,12,12", "--cut", "features", "--name", "net"]
        arguments += ["-o", str(tmp_path / "dist"), "--wire", "int8", "--wire-check", str(tmp_path / name)]
        assert main(arguments) == 1
        assert not (tmp_path / "dist").exists()
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_sample_must_have_the_models_inputs(convnet: Path, compiled_convnet: Compiled) -> None:
    x = np.zeros((1, 3, 12, 12), "f4")
    assert named(x, SPECS)["x"] is x
    two = (*SPECS, TensorSpec("z", "FP32", (1,)))
    for sample, specs, message in (
        ({"y": x}, SPECS, "arrays 'y' are given; the model's inputs are 'x'"),
        ({}, SPECS, "arrays without names are given"),
        (x, two, "one array is given; the model's inputs are 'x', 'z'"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            named(sample, specs)
    with pytest.raises(InvalidArgument, match=r"input 'x' has shape \[2\]"):
        measure_losses(convnet, compiled_convnet, [{"x": np.zeros(2, "f4")}], inputs=SHAPES)


def test_random_inputs_are_the_same_in_every_run_and_of_every_datatype() -> None:
    specs = [
        TensorSpec("a", "FP32", (-1, 3, -1)),
        TensorSpec("b", "INT64", (4,)),
        TensorSpec("c", "BOOL", (100,)),
        TensorSpec("d", "FP16", ()),
    ]
    one, other = random_sample(specs), random_sample(specs)
    for spec in specs:
        np.testing.assert_array_equal(one[spec.name], other[spec.name])
        assert one[spec.name].dtype == spec.dtype and spec.fits(one[spec.name].shape)
    assert one["a"].shape == (2, 3, 64) and set(one["c"]) == {False, True}
