"""Quantized models as exporters and ONNX Runtime write them; random weights, the same in every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
MICROSOFT = "com.microsoft"
KINDS = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
}


def node(operator: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [output], domain=domain, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Array],
    outputs: dict[str, str],
    weights: dict[str, Any],
    opset: int = 17,
) -> onnx.ModelProto:
    """A model whose inputs have the datatypes and shapes of arrays, and whose outputs have the given datatypes."""
    graph = helper.make_graph(
        list(nodes),
        "model",
        [helper.make_tensor_value_info(n, KINDS[str(a.dtype)], list(a.shape)) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, KINDS[kind], None) for n, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def save(written: onnx.ModelProto, path: Path) -> Path:
    onnx.save(written, path)
    return path


def bytes_(*shape: int, kind: str = "int8", seed: int = 0) -> Array:
    lowest, highest = np.iinfo(kind).min + 1, np.iinfo(kind).max
    return np.random.default_rng(seed).integers(lowest, highest + 1, shape).astype(kind)


class Net:
    """Writes a network in QDQ form, layer by layer, as `quantize_static` does."""

    def __init__(self, x: str = "x") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Any] = {}
        self.top = x
        self._seeds = iter(range(1000))

    def quantized(self, scale: float, zero: int, kind: str = "uint8") -> str:
        """Put QuantizeLinear and DequantizeLinear after the last tensor; return the name of the bytes."""
        name = self.top
        self.weights |= {f"{name}.scale": np.float32(scale), f"{name}.zero": np.array(zero, kind)}
        parameters = [f"{name}.scale", f"{name}.zero"]
        self.nodes.append(node("QuantizeLinear", [name, *parameters], f"{name}.q"))
        self.nodes.append(node("DequantizeLinear", [f"{name}.q", *parameters], f"{name}.d"))
        self.top = f"{name}.d"
        return f"{name}.q"

    def weight(self, name: str, shape: Sequence[int], axis: int | None, kind: str = "int8") -> str:
        generator = np.random.default_rng(next(self._seeds))
        count = () if axis is None else (shape[axis],)
        zero = np.zeros(count, kind) if kind == "int8" else np.full(count, 131, kind)
        scale = (generator.random(count) * 0.02 + 0.005).astype("f4")
        self.weights |= {name: bytes_(*shape, kind=kind, seed=next(self._seeds)), f"{name}.scale": scale}
        self.weights[f"{name}.zero"] = zero
        given = {} if axis is None else {"axis": axis}
        self.nodes.append(node("DequantizeLinear", [name, f"{name}.scale", f"{name}.zero"], f"{name}.d", **given))
        return f"{name}.d"

    def bias(self, name: str, weight: str, scale: float) -> str:
        scales = (self.weights[f"{weight}.scale"] * scale).astype("f4")
        length = self.weights[weight].shape[0]
        values = np.random.default_rng(next(self._seeds)).integers(-4000, 4000, length).astype("i4")
        self.weights |= {name: values, f"{name}.scale": scales, f"{name}.zero": np.zeros(scales.shape, "i4")}
        given = {"axis": 0} if scales.ndim else {}
        self.nodes.append(node("DequantizeLinear", [name, f"{name}.scale", f"{name}.zero"], f"{name}.d", **given))
        return f"{name}.d"

    def add(self, operator: str, output: str, *more: str, **attributes: Any) -> None:
        self.nodes.append(node(operator, [self.top, *more], output, **attributes))
        self.top = output


def conv_net(path: Path, seed: int = 0) -> tuple[Path, str]:
    """Two convolutions, a residual addition, pooling and a classifier. Returns the file and a quantized tensor."""
    net = Net()
    net._seeds = iter(range(seed, seed + 1000))
    net.quantized(0.03, 120)
    net.add("Conv", "c1", net.weight("w1", (16, 3, 3, 3), 0), net.bias("b1", "w1", 0.03), pads=[1] * 4)
    net.add("Relu", "r1")
    cut = net.quantized(0.08, 0)
    skip = net.top
    net.add("Conv", "c2", net.weight("w2", (16, 16, 3, 3), 0), net.bias("b2", "w2", 0.08), pads=[1] * 4)
    net.quantized(0.3, 128)
    net.add("Add", "a", skip)
    net.add("Relu", "r2")
    net.quantized(0.3, 0)
    net.add("MaxPool", "p", kernel_shape=[2, 2], strides=[2, 2])
    net.quantized(0.3, 0)
    net.weights["p.scale"], net.weights["p.zero"] = net.weights["r2.scale"], net.weights["r2.zero"]
    net.add("GlobalAveragePool", "g")
    net.add("Flatten", "f")
    net.quantized(0.2, 10)
    net.add("Gemm", "y", net.weight("w3", (10, 16), 0), net.bias("b3", "w3", 0.2), transB=1)
    x = np.zeros((1, 3, 16, 16), "f4")
    return save(model(net.nodes, {"x": x}, {"y": "float32"}, net.weights), path), cut


def dynamic_net(path: Path) -> tuple[Path, str]:
    """Two products of `quantize_dynamic`, with a GELU between them. Returns the file and a float tensor."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Any] = {"half": np.float32(0.5), "one": np.float32(1), "root": np.float32(2**0.5)}

    def product(x: str, name: str, rows: int, columns: int, seed: int) -> str:
        weights[f"{name}.w"] = bytes_(rows, columns, seed=seed)
        weights[f"{name}.s"], weights[f"{name}.z"] = np.float32(0.002 + seed * 1e-3), np.int8(0)
        weights[f"{name}.b"] = np.random.default_rng(seed).standard_normal(columns).astype("f4")
        outputs = [f"{name}.q", f"{name}.xs", f"{name}.xz"]
        nodes.append(helper.make_node("DynamicQuantizeLinear", [x], outputs))
        nodes.append(node("MatMulInteger", [outputs[0], f"{name}.w", outputs[2], f"{name}.z"], f"{name}.i"))
        nodes.append(node("Cast", [f"{name}.i"], f"{name}.f", to=TensorProto.FLOAT))
        nodes.append(node("Mul", [outputs[1], f"{name}.s"], f"{name}.scale"))
        nodes.append(node("Mul", [f"{name}.f", f"{name}.scale"], f"{name}.m"))
        nodes.append(node("Add", [f"{name}.m", f"{name}.b"], f"{name}.y"))
        return f"{name}.y"

    hidden = product("x", "up", 32, 64, 1)
    for operator, inputs, output in (
        ("Div", [hidden, "root"], "g1"),
        ("Erf", ["g1"], "g2"),
        ("Add", ["g2", "one"], "g3"),
        ("Mul", [hidden, "g3"], "g4"),
        ("Mul", ["g4", "half"], "gelu"),
    ):
        nodes.append(node(operator, inputs, output))
    result = product("gelu", "down", 64, 32, 2)
    x = np.zeros((1, 12, 32), "f4")
    return save(model(nodes, {"x": x}, {result: "float32"}, weights), path), "gelu"


class _Block:
    """Writes attention and a feed-forward part, quantized to bytes everywhere (static) or at its products (dynamic)."""

    length, width, heads = 8, 16, 2

    def __init__(self, net: Net, name: str, seed: int, dynamic: bool) -> None:
        self.net, self.name, self.dynamic = net, name, dynamic
        self.generator = np.random.default_rng(seed)

    def product(self, x: str, rows: int, columns: int) -> str:
        net, name = self.net, f"{self.name}.{len(self.net.nodes)}"
        weight = self.generator.integers(-127, 128, (rows, columns)).astype("i1")
        scales = (self.generator.random(columns) * 0.002 + 0.002).astype("f4")
        net.weights |= {f"{name}.w": weight, f"{name}.s": scales, f"{name}.z": np.zeros(columns, "i1")}
        net.weights[f"{name}.b"] = self.generator.standard_normal(columns).astype("f4")
        if self.dynamic:
            net.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"{name}.q", f"{name}.xs", f"{name}.xz"]))
            net.nodes.append(node("MatMulInteger", [f"{name}.q", f"{name}.w", f"{name}.xz", f"{name}.z"], f"{name}.i"))
            net.nodes.append(node("Cast", [f"{name}.i"], f"{name}.f", to=TensorProto.FLOAT))
            net.nodes.append(node("Mul", [f"{name}.xs", f"{name}.s"], f"{name}.scale"))
            net.nodes.append(node("Mul", [f"{name}.f", f"{name}.scale"], f"{name}.m"))
        else:
            net.nodes.append(node("DequantizeLinear", [f"{name}.w", f"{name}.s", f"{name}.z"], f"{name}.d", axis=1))
            net.nodes.append(node("MatMul", [x, f"{name}.d"], f"{name}.m"))
        net.top = f"{name}.m"
        net.add("Add", f"{name}.y", f"{name}.b")
        return self.bytes_(0.03, 128)

    def bytes_(self, scale: float, zero: int) -> str:
        """The last tensor, quantized and back in a static network."""
        if not self.dynamic:
            self.net.quantized(scale * (1 + self.generator.random() / 10), zero)
        return self.net.top

    def step(self, operator: str, *inputs: str, **attributes: Any) -> str:
        self.net.top = inputs[0]
        self.net.add(operator, f"{self.name}.{len(self.net.nodes)}.{operator}", *inputs[1:], **attributes)
        return self.net.top

    def write(self, x: str, activation: str) -> str:
        net, each = self.net, self.width // self.heads
        net.weights |= {"split": np.array([0, self.length, self.heads, each]), "joined": np.array([0, 0, self.width])}
        net.weights |= {"half": np.float32(each**-0.5)}
        gain, shift = f"{self.name}.gain", f"{self.name}.shift"
        net.weights |= {g: self.generator.standard_normal(self.width).astype("f4") for g in (gain, shift)}
        q, k, v = (self.step("Reshape", self.product(x, self.width, self.width), "split") for _ in range(3))
        q, v = (self.step("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, v))
        self.step("MatMul", q, self.step("Transpose", k, perm=[0, 2, 3, 1]))
        self.step("Softmax", self.step("Mul", self.bytes_(0.2, 128), "half"), axis=-1)
        self.step("MatMul", self.bytes_(1 / 256, 0), v)
        mixed = self.step("Reshape", self.step("Transpose", self.bytes_(0.03, 128), perm=[0, 2, 1, 3]), "joined")
        self.step("Add", self.product(mixed, self.width, self.width), x)
        x = self.step("LayerNormalization", self.bytes_(0.05, 128), gain, shift, axis=-1)
        x = self.bytes_(0.03, 128)
        self.step(activation, self.product(x, self.width, 2 * self.width))
        self.step("Add", self.product(self.bytes_(0.03, 128), 2 * self.width, self.width), x)
        self.step("LayerNormalization", self.bytes_(0.05, 128), gain, shift, axis=-1)
        return self.bytes_(0.03, 128)


def transformer(path: Path, dynamic: bool, seed: int = 2, activation: str = "Relu") -> tuple[Path, str, list[str]]:
    """Two blocks of a transformer. Returns the file, the tensor between them, and the second block's weights.

    Seed and activation are those of the second block.
    """
    net = Net()
    if not dynamic:
        net.quantized(0.03, 128)
    top = _Block(net, "first", 1, dynamic).write(net.top, "Relu")
    cut, before = top.removesuffix(".d") + ("" if dynamic else ".q"), set(net.weights)
    _Block(net, "hidden_block", seed, dynamic).write(top, activation)
    net.nodes[-1].output[0] = "y"  # the device knows the names of results
    x = np.zeros((1, _Block.length, _Block.width), "f4")
    return (
        save(model(net.nodes, {"x": x}, {"y": "float32"}, net.weights), path),
        cut,
        sorted(net.weights.keys() - before),
    )
