"""Extents that are known at run time only: the same results at every size, and the rules' loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.schedule_harness import TARGETS, Array, close
from zmq_offload.compile.build import build

targets = pytest.mark.parametrize("target", TARGETS, ids=["widest", "AVX2", "SSE2"][: len(TARGETS)])


def check(
    target: tvm.target.Target,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    sizes: Iterable[dict[str, int]],
    **weights: Array,
) -> None:
    """Compile once with symbolic extents, and compare with ONNX Runtime at each of `sizes`."""
    graph = helper.make_graph(
        list(nodes),
        "symbolic",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    main = relax.VirtualMachine(build(from_onnx(model, keep_params_in_input=False), target), tvm.cpu())["main"]
    rng = np.random.default_rng(0)
    for size in sizes:
        feeds = {
            n: rng.standard_normal([size[s] if isinstance(s, str) else s for s in shape]).astype("float32")
            for n, shape in inputs.items()
        }
        out: Any = main(*(tvm.runtime.tensor(x) for x in feeds.values()))
        close((out if hasattr(out, "numpy") else out[0]).numpy(), session.run(None, feeds)[0], 2e-5)


def weight(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype("float32") * np.float32(0.2)


@targets
def test_rows_times_a_constant_matrix(target: tvm.target.Target) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["y"]),
    ]
    sizes = [{"n": n} for n in (*range(1, 35), 64, 67)]
    check(target, nodes, {"x": ["n", 24]}, sizes, w=weight(24, 150), b=weight(150))


@targets
def test_products_of_two_inputs(target: tvm.target.Target) -> None:
    nodes = [helper.make_node("MatMul", ["p", "q"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    edges = (1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 47, 65)
    sizes = [{"b": 1 + i % 3, "m": m, "k": 1 + (m * 5 + n) % 37, "n": n} for i, m in enumerate(edges) for n in edges]
    check(target, nodes, {"p": ["b", "m", "k"], "q": ["b", "k", "n"]}, sizes)


@targets
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "ReduceMax", "ReduceMean"])
def test_rows_of_any_length(target: tvm.target.Target, op: str) -> None:
    attributes = {"axes": [-1]} if op.startswith("Reduce") else {"axis": -1}
    nodes = [helper.make_node("Exp", ["x"], ["a"]), helper.make_node(op, ["a"], ["y"], **attributes)]
    check(target, nodes, {"x": [3, "n"]}, [{"n": n} for n in (*range(1, 36), 63, 64, 65, 200)])


@targets
def test_elements_of_any_number(target: tvm.target.Target) -> None:
    nodes = [helper.make_node("Tanh", ["x"], ["a"]), helper.make_node("Mul", ["a", "x"], ["y"])]
    check(target, nodes, {"x": [2, "n", 3]}, [{"n": n} for n in (*range(1, 24), 100)])
