"""Operators between dequantize and quantize that read bytes and write bytes: tables, affine functions, averages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm

from tests.support import quantized_models as q
from zmq_offload.compile import UncutModel, compile_uncut
from zmq_offload.compile.build import build, prepared
from zmq_offload.compile.onnx.importer import import_uncut
from zmq_offload.compile.pipeline import fusing

Array = np.ndarray[Any, Any]
F = np.float32
IMAGE = (1, 3, 7, 11)


class Graph:
    """Writes functions of quantized inputs `x`, `y` (uint8) and `s` (int8), each with a quantized output of its own."""

    def __init__(self, shape: tuple[int, ...] = IMAGE) -> None:
        self.feeds = {n: q.bytes_(*shape, kind="uint8", seed=i) for i, n in enumerate("xy")}
        self.feeds["s"] = q.bytes_(*shape, seed=2)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Any] = {}
        self.outputs: dict[str, str] = {}
        for name, scale, zero in (("x", 0.03, 120), ("y", 0.043, 131), ("s", 0.05, -3)):
            self.weights |= {f"{name}.scale": F(scale), f"{name}.zero": np.array(zero, self.feeds[name].dtype)}
            self.nodes.append(q.node("DequantizeLinear", [name, f"{name}.scale", f"{name}.zero"], f"{name}.d"))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(q.node(operator, list(inputs), name, **attributes))
        return name

    def quantized(self, x: str, scale: float, zero: int, kind: str = "uint8") -> str:
        self.weights |= {f"{x}.scale": F(scale), f"{x}.zero": np.array(zero, kind)}
        self.nodes.append(q.node("QuantizeLinear", [x, f"{x}.scale", f"{x}.zero"], f"{x}.q"))
        return f"{x}.q"

    def requantized(self, x: str, scale: float, zero: int) -> str:
        bytes_ = self.quantized(x, scale, zero)
        return self.add("DequantizeLinear", bytes_, f"{x}.scale", f"{x}.zero")

    def output(self, x: str, scale: float, zero: int, kind: str = "uint8") -> None:
        self.outputs[self.quantized(x, scale, zero, kind)] = kind

    def model(self) -> onnx.ModelProto:
        used = {i for n in self.nodes for i in n.input}
        self.feeds = {n: a for n, a in self.feeds.items() if f"{n}.d" in used}
        nodes = [n for n in self.nodes if n.output[0] in used or n.output[0] in self.outputs]
        weights = {n: w for n, w in self.weights.items() if any(n in node.input for node in nodes)}
        return q.model(nodes, self.feeds, self.outputs, weights, opset=20)


def check(graph: Graph, folder: Path, symbolic: bool = False) -> None:
    """Compare with ONNX Runtime: nothing is off by more than a step, and little by one."""
    import onnxruntime

    model = graph.model()
    for given in model.graph.input if symbolic else ():
        given.type.tensor_type.shape.dim[-1].dim_param = "n"
    file = q.save(model, folder / "m.onnx")
    inputs = {n: (*a.shape[:-1], "n") for n, a in graph.feeds.items()} if symbolic else None
    compile_uncut(file, folder / "m.so", inputs=inputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    ours = UncutModel(folder / "m.so")(*(graph.feeds[i.name] for i in session.get_inputs()))
    for name, a, b in zip(graph.outputs, ours, session.run(None, graph.feeds), strict=True):
        apart = np.abs(a.astype(int) - b.astype(int))
        assert a.dtype == b.dtype and a.shape == b.shape and apart.max() <= 1, name
        assert (apart > 0).mean() < 0.03, name


def operators_of(graph: Graph, folder: Path) -> list[tuple[str, str]]:
    """The operators that are left when the graph is prepared, with their datatypes."""
    mod = prepared(import_uncut(q.save(graph.model(), folder / "p.onnx"), {}))
    values = [b.value for block in mod["main"].body.blocks for b in block.bindings]
    return [(str(v.op.name), str(v.ty.dtype)) for v in values if isinstance(v, tvm.ir.Call)]


def functions() -> Graph:
    graph = Graph()
    for operator in ("Sigmoid", "Tanh", "HardSwish", "Gelu", "Exp", "Elu"):
        graph.output(graph.add(operator, "x.d"), 1 / 64, 100)
    graph.output(graph.add("LeakyRelu", "s.d", alpha=0.13), 0.05, -3, "int8")
    # SiLU and GELU, quantized after each step.
    gate = graph.requantized(graph.add("Sigmoid", "x.d"), 1 / 256, 0)
    graph.output(graph.add("Mul", "x.d", gate), 0.02, 20)
    graph.weights |= {"root": F(2**0.5), "one": F(1), "half": F(0.5)}
    scaled = graph.requantized(graph.add("Div", "s.d", "root"), 0.04, 125)
    gate = graph.requantized(graph.add("Erf", scaled), 1 / 127, 128)
    gate = graph.requantized(graph.add("Add", gate, "one"), 1 / 127, 0)
    graph.output(graph.add("Mul", graph.add("Mul", "s.d", gate), "half"), 0.03, 7)
    return graph


def test_functions_of_one_tensor_are_tables(tmp_path: Path) -> None:
    graph = functions()
    check(graph, tmp_path)
    found = operators_of(graph, tmp_path)
    assert [name for name, _ in found].count("relax.take") == len(graph.outputs)
    assert not any(kind == "float32" for _, kind in found)


@pytest.mark.parametrize(("count", "symbolic"), [(5, False), (200, False), (5, True), (200, True)])
def test_tables_take_any_number_of_bytes(count: int, symbolic: bool, tmp_path: Path) -> None:
    graph = Graph((1, count))
    graph.output(graph.add("Sigmoid", "s.d"), 1 / 256, 0)
    graph.output(graph.add("Tanh", "x.d"), 1 / 128, 0, "int8")
    check(graph, tmp_path, symbolic)


def test_a_table_is_looked_up_by_permutations(tmp_path: Path) -> None:
    graph = Graph((1, 4096))
    graph.output(graph.add("Sigmoid", "x.d"), 1 / 256, 0)
    mod = import_uncut(q.save(graph.model(), tmp_path / "m.onnx"), {})
    executable = build(mod, tvm.target.Target({"kind": "llvm", "mcpu": "znver4", "num-cores": 1}))
    code = str(executable.mod.imports[0].inspect_source("s"))
    assert "vpermi2b" in code or "vpermt2b" in code


def test_sums_products_and_parts_of_two_tensors_are_right(tmp_path: Path) -> None:
    graph = Graph()
    graph.output(graph.add("Add", "x.d", "y.d"), 0.059, 110)
    graph.output(graph.add("Relu", graph.add("Sub", "x.d", "s.d")), 0.037, 0)
    graph.output(graph.add("Mul", "s.d", "y.d"), 0.11, -5, "int8")
    graph.output(graph.add("Add", graph.add("Mul", "x.d", "y.d"), "s.d"), 0.13, 99)
    graph.output(graph.add("Concat", "x.d", "s.d", graph.add("Add", "x.d", "y.d"), axis=1), 0.07, 121)
    graph.weights["sizes"] = np.array([1, 3, 14, 22], "i8")
    floor = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    graph.output(graph.add("Resize", "x.d", "", "", "sizes", mode="nearest", **floor), 0.03, 120)
    check(graph, tmp_path)
    kinds = {kind for name, kind in operators_of(graph, tmp_path) if name in ("relax.concat", "relax.image.resize2d")}
    assert kinds == {"uint8"}


def test_averages_are_sums_of_integers(tmp_path: Path) -> None:
    graph = Graph()
    graph.output(graph.add("GlobalAveragePool", "x.d"), 0.003, 120)
    graph.output(graph.add("GlobalAveragePool", "s.d"), 0.005, 4, "int8")
    graph.weights["axes"] = np.array([1, 3], "i8")
    graph.output(graph.add("ReduceMean", "x.d", "axes", keepdims=0), 0.004, 120)
    window = {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1], "strides": [1, 2]}
    graph.output(graph.add("AveragePool", "x.d", **window), 0.011, 120)
    graph.output(graph.add("AveragePool", "s.d", count_include_pad=1, **window), 0.013, 120)
    check(graph, tmp_path)
    found = operators_of(graph, tmp_path)
    assert [kind for name, kind in found if name == "relax.sum"] == ["int32"] * 3
    assert [kind for name, kind in found if name == "relax.nn.conv2d"] == ["int32"] * 2


def test_ranges_of_channels_last_tensors_are_found_in_place(tmp_path: Path) -> None:
    """Of a tensor after Relu only the largest value is searched, and no tensor is transposed for it."""
    x = np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype("f4")
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Any] = {"scale": F(0.01)}
    top = "x"
    for layer in range(2):
        weights[f"w{layer}"] = q.bytes_(8, 8, 3, 3, seed=layer)
        quantized = [f"{part}{layer}" for part in ("q", "s", "z")]
        nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", [top], quantized))
        nodes.append(q.node("ConvInteger", [quantized[0], f"w{layer}", quantized[2]], f"i{layer}", pads=[1] * 4))
        nodes.append(q.node("Cast", [f"i{layer}"], f"f{layer}", to=onnx.TensorProto.FLOAT))
        nodes.append(q.node("Mul", [quantized[1], "scale"], f"m{layer}"))
        nodes.append(q.node("Mul", [f"f{layer}", f"m{layer}"], f"p{layer}"))
        nodes.append(q.node("Relu", [f"p{layer}"], f"r{layer}"))
        top = f"r{layer}"
    file = q.save(q.model(nodes, {"x": x}, {top: "float32"}, weights), tmp_path / "m.onnx")
    target = tvm.target.Target({"kind": "llvm", "mcpu": "znver4", "num-cores": 1})
    with target:
        mod = tvm.transform.Sequential(fusing(target))(prepared(import_uncut(file, {})))
    names = [str(v.name_hint) for v in mod.functions]
    searched = [re.sub(r"\d*$", "", n) for n in names]
    assert searched.count("max") == 2 and searched.count("min") == 1
    # One for the input and one for the output, whose channels are first.
    assert sum("transpose" in n for n in names) == 2

    import onnxruntime

    compile_uncut(file, tmp_path / "m.so")
    (right,) = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    (ours,) = UncutModel(tmp_path / "m.so")(x)
    np.testing.assert_allclose(ours, right, rtol=0, atol=0.02 * right.max())
