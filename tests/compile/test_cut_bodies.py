"""Cuts in the bodies of loops and branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.support import onnx_models
from tests.support.local_client import LocalClient
from zmq_offload.compile import compile_model
from zmq_offload.device.model import load
from zmq_offload.errors import InvalidArgument


def looping(path: Path) -> Path:
    """x -> h -> a Loop whose body computes `inner` from `carried` -> y."""
    value, truth = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Relu", ["carried"], ["inner"]),
            helper.make_node("Add", ["inner", "carried"], ["sum"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go", truth, []),
            helper.make_tensor_value_info("carried", value, [2]),
        ],
        [helper.make_tensor_value_info("on", truth, []), helper.make_tensor_value_info("sum", value, [2])],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Loop", ["times", "go0", "h"], ["l"], name="again", body=body),
        helper.make_node("Tanh", ["l"], ["y"]),
    ]
    return onnx_models.write(path, nodes, {"x": [2]}, {"y": [2]}, {"times": np.array(3), "go0": np.array(True)})


def branching(path: Path, *, known: bool = False) -> Path:
    """x -> h -> an If, one of whose branches computes `deep` on its way -> y. `known`: which one it is is constant."""
    out = onnx.TensorProto.FLOAT
    one = helper.make_graph(
        [helper.make_node("Relu", ["h"], ["deep"]), helper.make_node("Exp", ["deep"], ["one"])],
        "one",
        [],
        [helper.make_tensor_value_info("one", out, [2, 3])],
    )
    other = helper.make_graph(
        [helper.make_node("Tanh", ["h"], ["other"])], "other", [], [helper.make_tensor_value_info("other", out, [2, 3])]
    )
    nodes = [
        helper.make_node("Sin", ["x"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["yes" if known else "c"], ["l"], then_branch=one, else_branch=other),
        helper.make_node("Tanh", ["l"], ["y"]),
    ]
    weights = {"zero": np.array(0, "f4"), "yes": np.array(True)}
    return onnx_models.write(path, nodes, {"x": [2, 3]}, {"y": [2, 3]}, weights)


@pytest.mark.parametrize("tensor", ["inner", "carried", "sum"])
def test_a_cut_inside_a_loop_is_refused(tmp_path: Path, tensor: str) -> None:
    for where in ({"cut": tensor}, {"cut": "h", "until": tensor}):
        with pytest.raises(InvalidArgument) as caught:
            compile_model(looping(tmp_path / "m.onnx"), name="m", output=tmp_path, **where)  # type: ignore[arg-type]
        # The loop is written out: each round has a name of its own.
        assert f"no tensor {tensor!r}; the nearest are 'again.1." in str(caught.value)


def test_a_cut_before_after_or_inside_a_branch_computes_the_same(tmp_path: Path) -> None:
    path = branching(tmp_path / "m.onnx")
    for cut, until in (("h", None), ("l", None), ("h", "l"), (["h", "deep"], None)):
        place = tmp_path / f"{len(cut)}{cut[0]}{until}"
        compiled = compile_model(path, cut=cut, until=until, name="m", output=place)
        model = load(compiled.device, client=LocalClient(place / "repository"))
        for sign in (1, -1):
            x = np.full((2, 3), sign, "f4") + onnx_models.random(2, 3) / 10
            h = np.sin(x)
            expected = np.tanh(np.exp(np.maximum(h, 0)) if h.sum() > 0 else np.tanh(h))
            np.testing.assert_allclose(model(x), expected, atol=1e-5)


def test_a_branch_that_is_always_taken_can_be_cut_inside(tmp_path: Path) -> None:
    compiled = compile_model(branching(tmp_path / "m.onnx", known=True), cut="deep", name="m", output=tmp_path)
    assert [t.name for t in compiled.models[0].inputs] == ["deep"]
