"""Folding with NumPy changes the time of compiling, and no result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from onnx import helper
from tvm import relax
from tvm.runtime import vm

from tests.support import onnx_models
from zmq_offload.compile.fold import fold_constants
from zmq_offload.compile.onnx.importer import import_onnx


def operators(mod: tvm.IRModule) -> list[str]:
    bindings = [b for block in mod["main"].body.blocks for b in block.bindings]
    return [b.value.op.name for b in bindings if isinstance(b.value, tvm.ir.Call)]


def test_what_the_importer_computes_from_weights_is_folded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"]),  # its bias is reshaped
        helper.make_node("Clip", ["h", "low", "high"], ["c"]),  # its limits may be NaN
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),  # its weight is transposed
    ]
    weights = {
        "w": onnx_models.random(4, 3, 2, 2),
        "b": onnx_models.random(4),
        "v": onnx_models.random(5, 16),
        "low": np.array(-0.5, "f4"),
        "high": np.array(np.nan, "f4"),
    }
    path = onnx_models.write(tmp_path / "m.onnx", nodes, {"x": [1, 3, 3, 3]}, {"y": [1, 5]}, weights)
    mod = import_onnx(path, {}).mod
    folded = fold_constants(mod)
    assert {"relax.permute_dims", "relax.isnan", "relax.where"} <= set(operators(mod))
    assert not {"relax.permute_dims", "relax.isnan", "relax.where"} & set(operators(folded))
    x = tvm.runtime.tensor(onnx_models.random(1, 3, 3, 3))
    one, other = (vm.VirtualMachine(tvm.compile(m, "llvm"), tvm.cpu())["main"](x)[0].numpy() for m in (mod, folded))
    np.testing.assert_array_equal(one, other)


def test_what_depends_on_an_input_is_left_alone() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            constant = builder.emit(relax.op.permute_dims(relax.const(onnx_models.random(2, 3))))
            turned = builder.emit(relax.op.permute_dims(x))
            result = builder.emit_output(relax.op.add(turned, constant))
        builder.emit_func_output(result)
    assert operators(fold_constants(builder.get())) == ["relax.permute_dims", "relax.add"]


A = np.array([[1.5, -2.0, np.nan], [0.0, np.inf, 3.0]], "float32")
B = np.array([[1.0, -2.5, 3.0], [-0.0, 4.0, 3.0]], "float32")
N = np.array([[3, -7, 2**31 + 5], [0, -1, 9]], "int64")
BITS = np.array([[True, False, True], [False, False, True]])
AT = np.array([[1, 0, 1], [0, 0, 1]], "int64")

op, const = relax.op, relax.const
CASES: dict[str, Callable[[], relax.Expr]] = {
    **{
        f"{name} {x.dtype}": lambda name=name, x=x, y=y: getattr(op, name)(number(x), number(y))
        for name in ("add", "subtract", "multiply", "maximum", "minimum", "less", "less_equal", "greater")
        for x, y in ((A[:, :2], B[:, :2]), (N, N[::-1]))
    },
    "equal": lambda: op.equal(number(A), number(B)),
    "greater_equal": lambda: op.greater_equal(number(A), number(B)),
    "logical_and": lambda: op.logical_and(number(BITS), number(BITS[::-1])),
    "logical_or": lambda: op.logical_or(number(BITS), number(BITS[::-1])),
    "logical_not": lambda: op.logical_not(number(BITS)),
    "negative": lambda: op.negative(number(A)),
    "abs": lambda: op.abs(number(N)),
    "where": lambda: op.where(number(BITS), number(A), number(B[:1])),
    "int64 to float32": lambda: op.astype(number(N), "float32"),
    "int64 to int32": lambda: op.astype(number(N), "int32"),
    "take": lambda: op.take(number(A), number(AT[0]), 1, "clip"),
    "take of all": lambda: op.take(number(A[0]), number(AT), None, "clip"),
    "gather_elements": lambda: op.gather_elements(number(N), number(AT), 1),
    "broadcast_to": lambda: op.broadcast_to(number(N), (2, 2, 3)),
    "concat": lambda: op.concat([number(A), number(B)], 1),
    "reshape of int64": lambda: op.reshape(number(N), (3, 2)),
    "squeeze to a scalar": lambda: op.squeeze(number(N[:1, :1])),
    "shape": lambda: op.shape_to_tensor(op.shape_of(number(A))),
}


def number(value: np.ndarray[Any, Any]) -> relax.Expr:
    return const(value, str(value.dtype))


@pytest.mark.parametrize("case", CASES)
def test_a_folded_operator_has_the_value_that_tvm_computes(case: str) -> None:
    builder = relax.BlockBuilder()
    with builder.function("main", []):
        with builder.dataflow():
            result = builder.emit_output(builder.normalize(CASES[case]()))
        builder.emit_func_output(result)
    mod = builder.get()
    folded = fold_constants(mod)
    assert operators(mod) and not operators(relax.transform.DeadCodeElimination()(folded))
    one, other = (vm.VirtualMachine(tvm.compile(m, "llvm"), tvm.cpu())["main"]().numpy() for m in (mod, folded))
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "call",
    [
        lambda: op.take(number(A), number(np.array([5], "int64")), 1, "clip"),  # TVM decides what this is
        lambda: op.astype(number(A), "int32"),  # of NaN and infinity
        lambda: op.astype(number(np.zeros(4096, "float16")), "float32"),  # a weight stays small
    ],
)
def test_what_numpy_and_tvm_may_see_differently_is_left_to_tvm(call: Callable[[], relax.Expr]) -> None:
    builder = relax.BlockBuilder()
    with builder.function("main", []):
        builder.emit_func_output(builder.emit(call()))
    mod = builder.get()
    assert operators(fold_constants(mod)) == operators(mod)
