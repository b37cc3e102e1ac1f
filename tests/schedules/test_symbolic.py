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
from tvm import relax, tirx
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.schedule_harness import TARGETS, Array, close
from zmq_offload.compile.build import build
from zmq_offload.compile.pipeline import fusing
from zmq_offload.schedules.machine import machine_of
from zmq_offload.schedules.schedule import schedule

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


@pytest.mark.parametrize(
    ("operator", "inputs", "empty"),
    [
        ("Conv", {"x": [1, 16, "h", "w"]}, [(1, 16, 0, 8), (1, 16, 8, 0)]),
        ("MatMul", {"x": ["b", "m", "k"], "q": ["b", "k", "n"]}, [(0, 3, 4), (2, 0, 4), (2, 3, 0)]),
    ],
)
def test_results_without_elements(operator: str, inputs: dict[str, list[int | str]], empty: list[Any]) -> None:
    weights = {"v": weight(2, 16, 1, 1), "b": weight(2)} if operator == "Conv" else {}
    nodes = [helper.make_node(operator, [*inputs, *weights], ["y"])]
    graph = helper.make_graph(
        nodes,
        "empty",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    main = relax.VirtualMachine(build(from_onnx(model, keep_params_in_input=False), TARGETS[0]), tvm.cpu())["main"]
    for shape in empty:  # a division by zero would end the process
        shapes = [shape] if operator == "Conv" else [(shape[0], shape[1], 5), (shape[0], 5, shape[2])]
        out: Any = main(*(tvm.runtime.tensor(np.zeros(s, "float32")) for s in shapes))
        found = (out if hasattr(out, "numpy") else out[0]).numpy()
        assert found.shape == ((1, 2, *shape[2:]) if operator == "Conv" else shape)


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


CONVOLUTIONS: dict[str, tuple[dict[str, Any], list[int], int]] = {
    "padded": ({"pads": [1] * 4}, [40, 8, 3, 3], 8),
    "strided": ({"strides": [2, 2], "pads": [0, 0, 1, 1]}, [20, 8, 3, 3], 8),
    "in place": ({}, [20, 8, 2, 2], 8),
    "few channels": ({"pads": [1] * 4, "strides": [2, 2]}, [20, 3, 3, 3], 3),
    "groups": ({"pads": [2] * 4, "group": 2, "dilations": [2, 2]}, [40, 4, 3, 3], 8),
    "depthwise": ({"pads": [1] * 4, "group": 24}, [24, 1, 3, 3], 24),
    "depthwise, strided": ({"pads": [1] * 4, "group": 24, "strides": [2, 2]}, [24, 1, 3, 3], 24),
    "1x1": ({}, [40, 8, 1, 1], 8),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_images_of_any_size(case: str) -> None:
    attributes, filters, channels = CONVOLUTIONS[case]
    target = TARGETS[list(CONVOLUTIONS).index(case) % len(TARGETS)]  # one each: compiling takes most of the time
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["a"], **attributes), helper.make_node("Relu", ["a"], ["y"])]
    edges = [(2, 2), (2, 31), (3, 16), (5, 5), (7, 13), (13, 7), (17, 1 + 1), (24, 33), (40, 40)]
    sizes = [{"b": 1 + i % 2, "h": h, "w": w} for i, (h, w) in enumerate(edges)]
    check(target, nodes, {"x": ["b", channels, "h", "w"]}, sizes, w=weight(*filters), b=weight(filters[0]))


TRANSPOSED: dict[str, tuple[dict[str, Any], list[int], list[int | str]]] = {
    "in place": ({"strides": [2, 2]}, [8, 24, 2, 2], ["b", 8, "h", "w"]),
    "padded": ({"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}, [8, 20, 3, 3], ["b", 8, "h", "w"]),
    "unequal strides": ({"strides": [3, 1], "pads": [2, 1, 0, 1]}, [3, 40, 5, 3], ["b", 3, "h", "w"]),
    "wide": ({"strides": [2, 2], "pads": [1] * 4}, [8, 16, 4, 4], [1, 8, 9, "w"]),
    "high": ({"strides": [2, 2], "pads": [1] * 4}, [8, 16, 4, 4], [1, 8, "h", 9]),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolutions_of_any_size(case: str) -> None:
    attributes, filters, image = TRANSPOSED[case]
    target = TARGETS[list(TRANSPOSED).index(case) % len(TARGETS)]
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w", "b"], ["a"], **attributes),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    edges = [(1, 1), (1, 2), (2, 1), (2, 31), (3, 16), (5, 5), (13, 7), (17, 3), (33, 40)]
    sizes = [{"b": 1 + i % 2, "h": h, "w": w} for i, (h, w) in enumerate(edges)]
    check(target, nodes, {"x": image}, sizes, w=weight(*filters), b=weight(filters[1]))


def test_transposed_convolutions_of_symbolic_images_have_the_kernel() -> None:
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])],
        "transposed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight(8, 16, 2, 2), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    mod = from_onnx(onnx.shape_inference.infer_shapes(model), keep_params_in_input=False)
    mod = tvm.ir.transform.Sequential(fusing(TARGETS[0]))(mod)
    kernels = [f for g, f in mod.functions.items() if "transposed" in g.name_hint]
    assert kernels
    scheduled = [schedule(f, machine_of(TARGETS[0])) for f in kernels]
    # TVM's definition asks for each tap of each result whether an input reaches it.
    assert all(f is not None and "if_then_else" not in str(f) for f in scheduled)


def test_sequences_of_any_length() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], pads=[2, 2]), helper.make_node("Relu", ["a"], ["y"])]
    sizes = [{"b": 1 + n % 2, "n": n} for n in (*range(1, 20), 33, 100)]
    check(TARGETS[-1], nodes, {"x": ["b", 8, "n"]}, sizes, w=weight(24, 8, 5))


def test_a_chain_of_strided_convolutions() -> None:
    """The extents of the later layers are nested divisions; they have one form everywhere."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("HardSwish", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], pads=[1] * 4, group=8),
        helper.make_node("HardSwish", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["e"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Add", ["p", "e"], ["f"]),
        helper.make_node("Clip", ["f", "", "top"], ["y"]),
    ]
    nodes.insert(5, helper.make_node("Conv", ["d", "u"], ["p"], strides=[2, 2]))
    weights = {"w": weight(8, 3, 3, 3), "v": weight(8, 1, 3, 3), "w2": weight(8, 8, 3, 3), "u": weight(8, 8, 1, 1)}
    sizes = [{"n": n} for n in (1, 2, 5, 16, 37)]
    check(TARGETS[-1], nodes, {"x": [1, 3, 12, "n"]}, sizes, **weights, top=np.float32(0.5))


def test_a_convolution_after_an_enlargement() -> None:
    """The extents are multiples; with TVM's bounds of the indices, compiling did not end."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("DepthToSpace", ["a"], ["b"], blocksize=2),
        helper.make_node("Conv", ["b", "v"], ["y"], pads=[1] * 4),
    ]
    sizes = [{"h": 1, "w": 1}, {"h": 5, "w": 8}, {"h": 9, "w": 17}]
    check(TARGETS[0], nodes, {"x": [1, 8, "h", "w"]}, sizes, w=weight(64, 8, 3, 3), v=weight(32, 16, 3, 3))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_clip_is_a_part_of_the_convolution_before_it(stride: int) -> None:
    """The importer writes Clip as a loop over the extents, which at a stride of 2 are an expression of the symbol."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[stride, stride]),
        helper.make_node("Clip", ["a", "low", "top"], ["y"]),
    ]
    limits = {"low": np.float32(0), "top": np.float32(6)}
    graph = helper.make_graph(
        nodes,
        "clip",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in {"w": weight(8, 8, 3, 3), **limits}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    mod = from_onnx(onnx.shape_inference.infer_shapes(model), keep_params_in_input=False)
    with TARGETS[0]:
        mod = tvm.ir.transform.Sequential(fusing(TARGETS[0]))(mod)
    loops = [f for f in mod.functions.values() if isinstance(f, tirx.PrimFunc)]
    assert len([f for f in loops if "T.max" in str(f)]) == 1
    assert any("zmq_offload.kernel" in str(f) and "T.max" in str(f) for f in loops)
