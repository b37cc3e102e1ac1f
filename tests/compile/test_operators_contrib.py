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


WORDS = {"q": floats(8, 24, seed=1), "b": floats(24, seed=2)}
ENDS = np.array([3, 5], "i4")


def projected(*more: str, constants: dict[str, Array] | None = None, **attributes: Any) -> Case:
    return one(
        "Attention", ["x", "q", "b", *more], floats(2, 5, 8), WORDS | (constants or {}), num_heads=2, **attributes
    )


def cached() -> Case:
    """ONNX Runtime reads the past only if the present is an output."""
    inputs = ["x", "q", "b", "", "p"]
    node = helper.make_node("Attention", inputs, ["h", "a"], domain="com.microsoft", num_heads=2, unidirectional=1)
    joined = [helper.make_node("ReduceSum", ["a"], ["c"], keepdims=0), helper.make_node("Add", ["h", "c"], ["y"])]
    return run([node, *joined], floats(2, 5, 8), WORDS | {"p": floats(2, 2, 2, 3, 4, seed=5)})


def embedded() -> Case:
    """The mask's lengths go to the attention."""
    inputs = ["x", "t", "w", "p", "s", "g", "z", "m"]
    nodes = [
        helper.make_node("EmbedLayerNormalization", inputs, ["e", "l", "u"], domain="com.microsoft"),
        helper.make_node("Attention", ["e", "q", "b", "l"], ["a"], domain="com.microsoft", num_heads=2),
        helper.make_node("Add", ["a", "u"], ["y"]),
    ]
    tables = {"w": floats(9, 8, seed=3), "p": floats(6, 8, seed=4), "s": floats(2, 8, seed=5)}
    norm = {"g": floats(8, seed=6), "z": floats(8, seed=7), "m": MASK, "t": np.ones((2, 5), "i4")}
    return run(nodes, np.arange(10, dtype="i4").reshape(2, 5) % 9, WORDS | tables | norm)


def grouped(past: int, ends: list[int], *more: str, new: int = 3, **attributes: Any) -> Case:
    """4 heads of queries, 2 of keys. The caches go to the output, too."""
    angles = np.arange(16, dtype="f4")[:, None] / 10 ** np.arange(8, dtype="f4")
    known: dict[str, Array] = {
        "k": floats(len(ends), new, 32, seed=1),
        "v": floats(len(ends), new, 32, seed=2),
        "e": np.array(ends, "i4"),
        "n": np.array(max(ends) + 1, "i4"),
        "pk": floats(len(ends), 2, past, 16, seed=3),
        "pv": floats(len(ends), 2, past, 16, seed=4),
        "c": np.cos(angles),
        "s": np.sin(angles),
    }
    caches = ["pk", "pv"] if past else ["", ""]
    inputs = ["x", "k", "v", *caches, "e", "n", *more]
    node = helper.make_node(
        "GroupQueryAttention",
        inputs,
        ["h", "a", "b"],
        "it",
        domain="com.microsoft",
        num_heads=4,
        kv_num_heads=2,
        **attributes,
    )
    # Past the end of an item a cache is undefined.
    inside = [helper.make_node("Slice", [n, "zero", "end", "two"], [f"{n}1"]) for n in "ab"]
    sums = [helper.make_node("ReduceSum", [f"{n}1"], [f"{n}2"], keepdims=0) for n in "ab"]
    joined = [helper.make_node("Sum", ["h", "a2", "b2"], ["y"])]
    bounds = {"zero": np.array([0]), "end": np.array([min(ends) + 1]), "two": np.array([2])}
    used = {n: v for n, v in known.items() if n in inputs} | bounds
    return run([node, *inside, *sums, *joined], floats(len(ends), new, 64), used)


def sums() -> Case:
    """The fourth output is what a transformer carries on."""
    node = helper.make_node("SkipLayerNormalization", ["x", "s", "g", "b"], ["n", "", "", "t"], domain="com.microsoft")
    return run([node, helper.make_node("Add", ["n", "t"], ["y"])], floats(2, 3, 8), NORM)


MORE = {"GroupQueryAttention, turned", "GroupQueryAttention, long cache, window", "Attention, positions"}
"""Cases that are tested with `-m operators`."""

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
    "MultiHeadAttention, lengths": lambda: heads(inputs=["x", "x", "x", "b", "l"], constants={"l": ENDS}),
    "Attention": projected,
    "Attention, mask": lambda: projected("m", constants={"m": MASK}, scale=0.3),
    "Attention, mask of queries": lambda: projected("m", constants={"m": np.tril(np.ones((2, 5, 5), "i4"))}),
    "Attention, lengths, causal": lambda: projected("l", constants={"l": ENDS}, unidirectional=1),
    "Attention, starts and lengths": lambda: projected("l", constants={"l": np.array([3, 5, 0, 2], "i4")}),
    "Attention, positions": lambda: projected("", "", "a", constants={"a": floats(2, 2, 5, 5)}),
    "Attention, past": cached,
    "EmbedLayerNormalization": embedded,
    "GroupQueryAttention": lambda: grouped(0, [2, 2]),
    "GroupQueryAttention, past": lambda: grouped(4, [6]),
    "GroupQueryAttention, several lengths": lambda: grouped(4, [4, 2], "c", "s", new=1, do_rotary=1),
    "GroupQueryAttention, long cache, window": lambda: grouped(9, [6], local_window_size=2, softcap=2.0),
    "GroupQueryAttention, turned": lambda: grouped(0, [2, 2], "c", "s", do_rotary=1, rotary_interleaved=1, scale=0.2),
    "FusedMatMul, batch": lambda: one(
        "FusedMatMul", ["x", "w"], floats(2, 4, 3), {"w": floats(4, 3, 5, seed=1)}, transBatchA=1
    ),
    "RotaryEmbedding": lambda: rotary((2, 5, 12), np.array([3], "i8")),
    "RotaryEmbedding, interleaved": lambda: rotary((2, 5, 12), np.arange(10).reshape(2, 5), interleaved=1),
    "RotaryEmbedding of heads, in part": lambda: rotary(
        (2, 3, 5, 6), np.arange(10).reshape(2, 5), rotary_embedding_dim=4, num_heads=3
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.operators if name in MORE else ()) for name in CASES]
)
def test_contrib_operators_are_right(name: str) -> None:
    found = outcome(CASES[name](), constant=False)
    assert found.kind == RIGHT, found.detail


def test_what_is_not_imported_of_a_contrib_operator_is_refused_by_name() -> None:
    node = helper.make_node("RotaryEmbedding", ["x", "p", "c", "s"], ["y"], "it", domain="com.microsoft", scale=0.5)
    tables = {"p": np.array([3], "i8"), "c": floats(16, 2), "s": floats(16, 2)}
    case = run([node], floats(2, 5, 12), tables)
    found = outcome(case, constant=False)
    assert found.kind == REFUSED
    where = "cannot import the operator RotaryEmbedding (com.microsoft, node 'it')"
    assert found.detail == f"{where} with scale=0.5; use 1"
