"""Operators of ONNX Runtime's own domain have ONNX Runtime's results, and what is not imported is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.support.operator_cases import REFUSED, RIGHT, Case, floats, outcome, run

Array = np.ndarray[Any, Any]


def one(operator: str, inputs: list[str], x: Array, constants: dict[str, Array], **attributes: Any) -> Case:
    node = helper.make_node(operator, inputs, ["y"], "it", domain="com.microsoft", **attributes)
    return run([node], x, constants)


def heads(**more: Any) -> Case:
    inputs = more.pop("inputs", ["x", "x", "x", "b"])
    constants = {"b": floats(24, seed=1)} | more.pop("constants", {})
    return one("MultiHeadAttention", inputs, floats(2, 5, 8), constants, num_heads=2, **more)


def rotary(shape: tuple[int, ...], places: Array, half: int = 2, **attributes: Any) -> Case:
    angles = np.arange(16, dtype="f4")[:, None] / 10 ** np.arange(half, dtype="f4")
    constants = {"p": places, "c": np.cos(angles), "s": np.sin(angles)}
    return one("RotaryEmbedding", ["x", "p", "c", "s"], floats(*shape), constants, **attributes)


MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], "i4")
PAST = {"k": floats(2, 2, 3, 4, seed=2), "v": floats(2, 2, 3, 4, seed=3)}
NORM = {"s": floats(2, 3, 8, seed=1), "g": floats(8, seed=2), "b": floats(8, seed=3), "c": floats(8, seed=4)}
KERNEL = {"w": floats(4, 3, 3, 3, seed=1), "b": floats(4, seed=2)}


def past() -> Case:
    """ONNX Runtime reads the past only if the present is an output."""
    inputs = ["x", "x", "x", "", "", "", "k", "v"]
    node = helper.make_node("MultiHeadAttention", inputs, ["h", "a", "b"], domain="com.microsoft", num_heads=2)
    joined = [helper.make_node("ReduceSum", ["a"], ["c"], keepdims=0), helper.make_node("Add", ["h", "c"], ["y"])]
    return run([node, *joined], floats(2, 5, 8), PAST)


def sums() -> Case:
    """The fourth output is what a transformer carries on."""
    node = helper.make_node("SkipLayerNormalization", ["x", "s", "g", "b"], ["n", "", "", "t"], domain="com.microsoft")
    return run([node, helper.make_node("Add", ["n", "t"], ["y"])], floats(2, 3, 8), NORM)


CASES: dict[str, Any] = {
    "QuickGelu": lambda: one("QuickGelu", ["x"], floats(3, 5), {}, alpha=1.5),
    "SkipLayerNormalization": lambda: one("SkipLayerNormalization", ["x", "s", "g"], floats(2, 3, 8), NORM),
    "SkipLayerNormalization, bias": lambda: one(
        "SkipLayerNormalization", ["x", "s", "g", "b", "c"], floats(2, 3, 8), NORM, epsilon=1e-3
    ),
    "SkipLayerNormalization, the sum": sums,
    "SkipSimplifiedLayerNormalization": lambda: one(
        "SkipSimplifiedLayerNormalization", ["x", "s", "g", "b"], floats(2, 3, 8), NORM
    ),
    "SimplifiedLayerNormalization": lambda: run(
        [helper.make_node("SimplifiedLayerNormalization", ["x", "g"], ["y"], axis=-1)], floats(2, 3, 8), NORM
    ),
    "LayerNormalization before its opset": lambda: run(
        [helper.make_node("LayerNormalization", ["x", "g", "b"], ["y"], axis=-1)], floats(2, 3, 8), NORM, 13
    ),
    "FusedMatMul": lambda: one(
        "FusedMatMul", ["x", "w"], floats(2, 4, 3), {"w": floats(5, 4, seed=1)}, transA=1, transB=1, alpha=0.5
    ),
    "FusedGemm": lambda: one(
        "FusedGemm",
        ["x", "w", "b"],
        floats(2, 4),
        {"w": floats(3, 4, seed=1), "b": floats(3)},
        transB=1,
        activation="LeakyRelu",
        activation_alpha=0.2,
    ),
    "FusedConv": lambda: one(
        "FusedConv", ["x", "w", "b"], floats(1, 3, 6, 6), KERNEL, activation="Relu", pads=[1, 1, 1, 1]
    ),
    "FusedConv, sum and limits": lambda: one(
        "FusedConv",
        ["x", "w", "b", "z"],
        floats(1, 3, 6, 6),
        KERNEL | {"z": floats(1, 4, 4, 4, seed=3)},
        activation="Clip",
        activation_params=[-0.5, 0.5],
    ),
    "MultiHeadAttention": heads,
    "MultiHeadAttention, mask": lambda: heads(inputs=["x", "x", "x", "b", "m"], constants={"m": MASK}),
    "MultiHeadAttention, positions, causal": lambda: heads(
        inputs=["x", "x", "x", "", "", "a"], constants={"a": floats(1, 2, 5, 5)}, unidirectional=1, scale=0.3
    ),
    "MultiHeadAttention, past": past,
    "RotaryEmbedding": lambda: rotary((2, 5, 12), np.array([3], "i8")),
    "RotaryEmbedding, interleaved": lambda: rotary((2, 5, 12), np.arange(10).reshape(2, 5), interleaved=1),
    "RotaryEmbedding of heads, in part": lambda: rotary(
        (2, 3, 5, 6), np.arange(10).reshape(2, 5), rotary_embedding_dim=4, num_heads=3
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contrib_operators_are_right(name: str) -> None:
    found = outcome(CASES[name](), constant=False)
    assert found.kind == RIGHT, found.detail


def test_what_is_not_imported_of_a_contrib_operator_is_refused_by_name() -> None:
    case = one("FusedMatMul", ["x", "w"], floats(2, 4, 3), {"w": floats(4, 3, 5)}, transBatchA=1)
    found = outcome(case, constant=False)
    assert found.kind == REFUSED
    where = "cannot import the operator FusedMatMul (com.microsoft, node 'it')"
    assert found.detail == f"{where} with transBatchA=1; write the transposition as Transpose"
