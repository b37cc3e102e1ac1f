"""Small ONNX models for the tests; their weights are random and the same in every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shape = Sequence[int | str]


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, np.ndarray[Any, Any]],
    opset: Sequence[tuple[str, int]] = (("", 17),),
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "model",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, list(s)) for n, s in outputs.items()],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opset]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def random(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def convnet(path: Path) -> Path:
    """x [N,3,H,W] -> features (convolutions with a skip) -> head; outputs y [N,10] and, from the middle, aux."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["conv1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        helper.make_node("Conv", ["relu1", "w2"], ["conv2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["conv2", "relu1"], ["features"]),
        helper.make_node("Tanh", ["features"], ["inner_tanh"]),
        helper.make_node("GlobalAveragePool", ["inner_tanh"], ["inner_pool"]),
        helper.make_node("Flatten", ["inner_pool"], ["inner_flat"]),
        helper.make_node("Gemm", ["inner_flat", "w3", "b3"], ["inner_logits"], transB=1),
        helper.make_node("Softmax", ["inner_logits"], ["y"], axis=1),
    ]
    weights = {
        "w1": random(8, 3, 3, 3, seed=1),
        "b1": random(8, seed=2),
        "w2": random(8, 8, 3, 3, seed=3),
        "w3": random(10, 8, seed=4),
        "b3": random(10, seed=5),
    }
    return write(path, nodes, {"x": ["N", 3, "H", "W"]}, {"y": ["N", 10]}, weights)


def mlp(path: Path, hidden: int = 16) -> Path:
    """x [N,8] -> matrix products -> z [N,2,4] (a reshape with -1)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("MatMul", ["h2", "w2"], ["h3"]),
        helper.make_node("Sigmoid", ["h3"], ["h4"]),
        helper.make_node("Reshape", ["h4", "shape"], ["z"]),
    ]
    weights = {"w1": random(8, hidden, seed=1), "w2": random(hidden, 8, seed=2), "shape": np.array([-1, 2, 4])}
    return write(path, nodes, {"x": ["N", 8]}, {"z": ["N", 2, 4]}, weights)


def two_products(path: Path) -> Path:
    """x [1,64] -> two matrix products of the same size, with h2 between them -> y [1,64]."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("MatMul", ["h2", "w2"], ["h3"]),
        helper.make_node("Softmax", ["h3"], ["y"], axis=1),
    ]
    weights = {"w1": random(64, 64, seed=1), "w2": random(64, 64, seed=2)}
    return write(path, nodes, {"x": [1, 64]}, {"y": [1, 64]}, weights)


def diamond(path: Path) -> Path:
    """Two inputs, two outputs, branches that cross: nothing is a clean cut."""
    nodes = [
        helper.make_node("MatMul", ["a", "w1"], ["a1"]),
        helper.make_node("Relu", ["b"], ["b1"]),
        helper.make_node("Add", ["a1", "b1"], ["s"]),
        helper.make_node("Mul", ["a1", "s"], ["p"]),
        helper.make_node("Tanh", ["s"], ["t"]),
        helper.make_node("Sub", ["p", "t"], ["u"]),
        helper.make_node("MatMul", ["t", "w2"], ["v"]),
        helper.make_node("Add", ["u", "v"], ["first"]),
        helper.make_node("Sigmoid", ["t"], ["second"]),
    ]
    weights = {"w1": random(6, 6, seed=1), "w2": random(6, 6, seed=2)}
    return write(path, nodes, {"a": [4, 6], "b": [4, 6]}, {"first": [4, 6], "second": [4, 6]}, weights)


def branches(path: Path) -> Path:
    """x [N,3,H,W] -> features -> two heads (each a convolution and more, `left_`, `right_`) and the device's own
    branch; y joins all three, `right` is an output of its own. `left` and `right` do not need each other."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["conv1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["features"]),
        helper.make_node("Conv", ["features", "left_w"], ["left_conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["left_conv"], ["left"]),
        helper.make_node("Conv", ["features", "right_w"], ["right_conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["right_conv"], ["right"]),
        helper.make_node("Conv", ["features", "own_w"], ["own_conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["own_conv", "left"], ["joined"]),
        helper.make_node("Mul", ["joined", "right"], ["product"]),
        helper.make_node("GlobalAveragePool", ["product"], ["y"]),
    ]
    weights = {
        "w1": random(8, 3, 3, 3, seed=1),
        "left_w": random(8, 8, 3, 3, seed=2),
        "right_w": random(8, 8, 3, 3, seed=3),
        "own_w": random(8, 8, 3, 3, seed=4),
    }
    return write(path, nodes, {"x": ["N", 3, "H", "W"]}, {"y": ["N", 8, 1, 1], "right": ["N", 8, "H", "W"]}, weights)
