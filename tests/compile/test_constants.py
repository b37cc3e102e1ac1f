"""Constant parts of an ONNX model are folded: shapes, weights, and branches that are always taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support.operator_cases import RIGHT, floats, outcome, run
from zmq_offload.compile.operators.constants import fold, without_weights

node = helper.make_node
Dims = Sequence[int | str]


def model(
    nodes: list[onnx.NodeProto], x: Dims, weights: dict[str, Any], outputs: Sequence[str] = ("y",), opset: int = 17
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def operators(folded: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in folded.graph.node]


def weights(folded: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {w.name: numpy_helper.to_array(w) for w in folded.graph.initializer}


FLATTEN = [
    node("Shape", ["x"], ["s"]),
    node("Gather", ["s", "zero"], ["n"]),
    node("Unsqueeze", ["n", "axes"], ["n1"]),
    node("Concat", ["n1", "rest"], ["to"], axis=0),
    node("Reshape", ["x", "to"], ["y"]),
]
INDICES = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}


def test_a_shape_that_is_computed_becomes_a_weight() -> None:
    folded = fold(model(FLATTEN, [2, 3, 4], INDICES))
    assert operators(folded) == ["Reshape"]
    assert weights(folded)["to"].tolist() == [2, -1] and set(weights(folded)) == {"to"}


def test_a_known_extent_of_a_partly_symbolic_shape_is_folded() -> None:
    assert operators(fold(model(FLATTEN, [2, "H", "W"], INDICES))) == ["Reshape"]


def test_a_symbolic_extent_stays_to_be_computed() -> None:
    folded = fold(model(FLATTEN, ["N", 3, 4], INDICES))
    assert operators(folded) == [n.op_type for n in FLATTEN]
    assert set(weights(folded)) == {"zero", "axes", "rest"}


def test_a_tensor_to_keep_is_computed_by_its_node() -> None:
    folded = fold(model(FLATTEN, [2, 3, 4], INDICES), keep=["n"])
    assert operators(folded) == ["Gather", "Unsqueeze", "Concat", "Reshape"]


def test_an_output_that_is_constant_stays_an_output() -> None:
    folded = fold(model(FLATTEN, [2, 3, 4], INDICES, outputs=("y", "to")))
    assert operators(folded) == ["Concat", "Reshape"]


@pytest.mark.parametrize("taken", [True, False])
def test_the_branch_that_is_taken_replaces_the_if(taken: bool) -> None:
    """Tensors of the branch keep their names, unless the model has the same name elsewhere."""

    def branch(operator: str) -> onnx.GraphProto:
        nodes = [node(operator, ["x"], ["a"]), node("Neg", ["a"], ["inner"]), node("Abs", ["inner"], ["result"])]
        return helper.make_graph(nodes, "b", [], [helper.make_empty_tensor_value_info("result")])

    nodes = [
        node("Abs", ["x"], ["a"]),
        node("If", ["known"], ["b"], then_branch=branch("Exp"), else_branch=branch("Tanh")),
        node("Add", ["a", "b"], ["y"]),
    ]
    folded = fold(model(nodes, [2], {"known": np.array(taken)}))
    assert operators(folded) == ["Abs", "Exp" if taken else "Tanh", "Neg", "Abs", "Add"]
    assert [list(n.output) for n in folded.graph.node] == [["a"], ["a.1"], ["inner"], ["b"], ["y"]]


def test_a_branch_may_hand_a_tensor_of_the_model_through() -> None:
    through = helper.make_graph([], "b", [], [helper.make_empty_tensor_value_info("h")])
    other = helper.make_graph([node("Neg", ["h"], ["n"])], "c", [], [helper.make_empty_tensor_value_info("n")])
    nodes = [node("Abs", ["x"], ["h"]), node("If", ["known"], ["y"], then_branch=through, else_branch=other)]
    assert operators(fold(model(nodes, [2], {"known": np.array(True)}))) == ["Abs", "Identity"]


def test_weights_of_few_bits_and_large_results_stay_as_they_are() -> None:
    nodes = [
        node("DequantizeLinear", ["w", "scale"], ["d"]),
        node("Expand", ["one", "large"], ["e"]),
        node("MatMul", ["x", "d"], ["m"]),
        node("Concat", ["m", "e"], ["y"], axis=1),
    ]
    given = {
        "w": np.ones((3, 4), "i1"),
        "scale": np.float32(0.5),
        "one": np.float32(1),
        "large": np.array([2, 1 << 17]),
    }
    assert operators(fold(model(nodes, [2, 3], given))) == ["DequantizeLinear", "Expand", "MatMul", "Concat"]


def test_the_shape_of_a_pool_that_rounds_up_is_not_taken_from_onnx() -> None:
    """ONNX's shape inference counts a window that begins in the padding; its specification does not."""
    nodes = [
        node("MaxPool", ["x"], ["p"], kernel_shape=[1], strides=[2], ceil_mode=1),
        node("Shape", ["p"], ["s"]),
        node("Expand", ["x1", "s"], ["y"]),
    ]
    assert "Shape" in operators(fold(model(nodes, [1, 1, 4], {"x1": np.float32(1)})))


def test_the_shape_of_a_pool_with_nothing_to_round_is_known() -> None:
    """As in networks that halve an image by AveragePool with ceil_mode, and pad by what they compute of its shape."""
    nodes = [
        node("AveragePool", ["x"], ["p"], kernel_shape=[2], strides=[2], ceil_mode=1),
        node("Shape", ["p"], ["s"]),
        node("Expand", ["x1", "s"], ["y"]),
    ]
    assert "Shape" not in operators(fold(model(nodes, [1, 1, 4], {"x1": np.float32(1)})))


def test_a_clipped_extent_is_known() -> None:
    """The folder does not know the extent of this pool; the importer does."""
    nodes = [
        node("MaxPool", ["x"], ["p"], kernel_shape=[2], strides=[2], ceil_mode=1),
        node("Shape", ["p"], ["s"]),
        node("Slice", ["s", "two", "three"], ["n"]),
        node("Clip", ["n", "one", "most"], ["end"]),
        node("Slice", ["x", "one", "end", "two"], ["y"]),
    ]
    constants = {"one": np.array([1]), "two": np.array([2]), "three": np.array([3]), "most": np.array(2)}
    nodes[3].input[1] = ""
    found = outcome(run(nodes, floats(1, 2, 5), constants), constant=False)
    assert found.kind == RIGHT, found.detail


def test_a_copy_for_shape_inference_has_types_in_place_of_large_weights() -> None:
    full = model([node("MatMul", ["x", "w"], ["y"])], [1, 4096], {"w": np.ones((4096, 64), "f4")})
    light = without_weights(full)
    assert light.ByteSize() < 1000 < full.ByteSize()
    (inferred,) = onnx.shape_inference.infer_shapes(light).graph.output
    assert [d.dim_value for d in inferred.type.tensor_type.shape.dim] == [1, 64]
