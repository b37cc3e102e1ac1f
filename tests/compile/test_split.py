"""A split model computes the same as the uncut one, for every cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.local_client import LocalClient, run_uncut
from zmq_offload.compile import Compiled, compile_model
from zmq_offload.device.model import load
from zmq_offload.protocol.tensors import Latest, TensorSpec

Dims = dict[str, Sequence[int | str]]


def check(path: Path, inputs: Dims, arrays: list[np.ndarray[Any, Any]], compiled: Compiled) -> LocalClient:
    client = LocalClient(compiled.subgraphs[0].parent.parent)
    model = load(compiled.device, client=client)
    found = model(*arrays)
    expected = run_uncut(path, inputs, arrays)
    assert isinstance(found, tuple) == (len(expected) > 1)
    for got, want in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)
    return client


@pytest.mark.parametrize(
    ("cut", "until"),
    [
        (["features"], None),
        (["x"], None),  # all of it
        (["relu1"], ["features"]),  # a region in the middle, with the skip connection inside
        (["conv2", "relu1"], None),  # a skip connection across the cut: both are sent
        (["conv1"], ["features", "relu1"]),  # a tensor that only the region needs is returned, too
        (["inner_logits"], ["y"]),
    ],
)
def test_every_region_of_a_convolutional_net_computes_the_same(
    convnet: Path, tmp_path: Path, cut: list[str], until: list[str] | None
) -> None:
    shapes: Dims = {"x": (1, 3, 12, 12)}
    compiled = compile_model(convnet, inputs=shapes, cut=cut, until=until, name="net", output=tmp_path)
    assert [t.name for t in compiled.models[0].inputs] == cut
    assert [t.name for t in compiled.models[0].outputs] == (until or ["y"])
    client = check(convnet, shapes, [onnx_models.random(1, 3, 12, 12)], compiled)
    ((model, version, timeout, names),) = client.calls
    assert (model, timeout, names) == ("net", None, cut)
    assert isinstance(version, Latest)  # that fits what the device was built for


@pytest.mark.parametrize(
    ("cut", "until"),
    [
        (["a1", "s"], None),  # several in, both outputs of the model out
        (["a", "b"], ["p", "t"]),
        (["s"], ["t"]),  # t is an output's only source and feeds the other, too
        (["t"], ["v"]),
        (["t"], ["second"]),  # an output of the model ends the region, another stays on the device
        (["t"], ["second", "v"]),
        (["a1"], ["p", "u", "first", "v", "t", "second", "s"]),
    ],
)
def test_several_inputs_and_outputs_keep_the_order_of_the_model(
    diamond: Path, tmp_path: Path, cut: list[str], until: list[str] | None
) -> None:
    if cut == ["a1"]:
        cut = ["a1", "b"]
    shapes: Dims = {}
    compiled = compile_model(diamond, inputs=shapes, cut=cut, until=until, name="net", output=tmp_path)
    assert [t.name for t in compiled.manifest.inputs] == ["a", "b"]
    assert [t.name for t in compiled.manifest.outputs] == ["first", "second"]
    arrays = [onnx_models.random(4, 6, seed=7), onnx_models.random(4, 6, seed=8)]
    check(diamond, shapes, arrays, compiled)


def test_a_tensor_used_inside_that_is_also_an_output_of_the_model_is_computed_once_and_returned(
    tmp_path: Path,
) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["both"]),
        helper.make_node("MatMul", ["both", "w"], ["y"]),
    ]
    path = onnx_models.write(
        tmp_path / "m.onnx", nodes, {"x": [2, 4]}, {"y": [2, 4], "both": [2, 4]}, {"w": onnx_models.random(4, 4)}
    )
    compiled = compile_model(path, cut=["h"], name="net", output=tmp_path / "dist")
    assert [t.name for t in compiled.models[0].outputs] == ["y", "both"]
    check(path, {}, [onnx_models.random(2, 4)], compiled)


@pytest.mark.parametrize("symbol", ["N", "?"])
def test_a_symbolic_batch_runs_at_every_size(mlp: Path, tmp_path: Path, symbol: str) -> None:
    shapes: Dims = {"x": (symbol, 8)}
    compiled = compile_model(mlp, inputs=shapes, cut=["h2"], until=["h4"], name="mlp", output=tmp_path)
    assert compiled.manifest.inputs == (TensorSpec("x", "FP32", (-1, 8)),)
    assert compiled.manifest.outputs == (TensorSpec("z", "FP32", (-1, 2, 4)),)
    assert compiled.models[0].inputs == (TensorSpec("h2", "FP32", (-1, 16)),)
    for batch in (1, 5, 2):
        check(mlp, {"x": (batch, 8)}, [onnx_models.random(batch, 8)], compiled)


def test_a_symbolic_batch_goes_through_convolutions(convnet: Path, tmp_path: Path) -> None:
    compiled = compile_model(convnet, inputs={"x": ("N", 3, 8, 8)}, cut=["features"], name="net", output=tmp_path)
    for batch in (1, 3):
        check(convnet, {"x": (batch, 3, 8, 8)}, [onnx_models.random(batch, 3, 8, 8)], compiled)


def test_a_tensor_that_simplifying_would_fuse_away_can_be_cut_at(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"]),
        helper.make_node("BatchNormalization", ["conv", "s", "b", "m", "v"], ["norm"]),
        helper.make_node("Relu", ["norm"], ["y"]),
    ]
    weights = {n: np.abs(onnx_models.random(4, seed=i)) for i, n in enumerate("sbmv")}
    weights["w"] = onnx_models.random(4, 3, 1, 1)
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 4, 4, 4]}, weights)
    compiled = compile_model(path, cut=["conv"], name="net", output=tmp_path / "dist")
    assert [t.name for t in compiled.manifest.outputs] == ["y"]
    check(path, {}, [onnx_models.random(1, 3, 4, 4)], compiled)


def test_an_output_that_is_an_input_is_not_overwritten_by_the_next_call(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["same"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
        helper.make_node("Reshape", ["h", "flat"], ["also"]),
    ]
    weights = {"w": onnx_models.random(4, 4), "flat": np.array([8])}
    outputs = {"y": [2, 4], "same": [8], "also": [8]}
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [2, 4]}, outputs, weights)
    compiled = compile_model(path, cut=["h"], name="net", output=tmp_path / "dist")
    model = load(compiled.device, client=LocalClient(tmp_path / "dist" / "repository"))
    one, two = onnx_models.random(2, 4, seed=1), onnx_models.random(2, 4, seed=2)
    first = model(one)
    kept = [array.copy() for array in first]
    model(two)
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(first[1], one.ravel())
