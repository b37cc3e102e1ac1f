"""What quantizers write around the products: weights of 4 bits, quantized tables and numbers, images of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.compile.test_quantized import Array, F, assert_within_a_step, both, random
from tests.support import quantized_models as q
from tests.support.float64 import in_float64
from zmq_offload.compile.onnx.importer import import_uncut
from zmq_offload.errors import InvalidArgument


def narrow(model: onnx.ModelProto, name: str, kind: int, values: Array) -> None:
    model.graph.initializer.append(helper.make_tensor(name, kind, values.shape, values.reshape(-1)))


def packed(values: Array, bits: int) -> Array:
    """Values of `bits` bits as bytes along the last axis, the lowest bits first."""
    each = 8 // bits
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % each)]).astype("u1")
    groups = padded.reshape(*padded.shape[:-1], -1, each)
    return np.bitwise_or.reduce(groups << (np.arange(each, dtype="u1") * bits), axis=-1).astype("u1")


def narrow_weights() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Weights of 4 bits in DequantizeLinear, and of 2, 4 and 8 bits in MatMulNBits, with blocks that K ends within."""
    generator = np.random.default_rng(0)
    depth, columns = 40, 6
    nodes: list[onnx.NodeProto] = []
    outputs: dict[str, str] = {}
    weights: dict[str, Any] = {"s": F(0.1), "rows": random(3, columns) ** 2, "bias": random(columns)}
    weights["cols"] = np.abs(random(columns)).astype("f4")

    def product(operand: str) -> None:
        outputs[f"{operand}.y"] = "float32"
        nodes.append(q.node("MatMul", ["x", operand], f"{operand}.y"))

    for name, inputs, attributes in (
        ("tensor", ["i4", "s"], {}),
        ("channels", ["u4", "cols", "u4.zero"], {"axis": 1}),
        ("blocks", ["u4", "rows", "u4.zeros"], {"axis": 0, "block_size": 16}),
    ):
        nodes.append(q.node("DequantizeLinear", inputs, name, **attributes))
        product(name)
    for bits, zero, biased in ((4, True, False), (4, False, True), (8, True, True), (2, False, False)):
        name = f"n{bits}{zero:d}"
        values = generator.integers(0, 2**bits, (columns, 3, 16))
        weights[f"{name}.w"] = packed(values, bits).reshape(columns, 3, -1)
        weights[f"{name}.s"] = random(columns, 3, seed=bits)
        if zero:
            weights[f"{name}.z"] = packed(generator.integers(0, 2**bits, (columns, 3)), bits)
        inputs = ["x", f"{name}.w", f"{name}.s", f"{name}.z" if zero else "", *(["", "bias"] if biased else [])]
        options = {"K": depth, "N": columns, "bits": bits, "block_size": 16}
        nodes.append(q.node("MatMulNBits", inputs, f"{name}.y", q.MICROSOFT, **options))
        outputs[f"{name}.y"] = "float32"
    feeds = {"x": random(2, 5, depth)}
    model = q.model(nodes, feeds, outputs, weights, opset=21)
    narrow(model, "i4", TensorProto.INT4, generator.integers(-8, 8, (depth, columns)))
    narrow(model, "u4", TensorProto.UINT4, generator.integers(0, 16, (depth, columns)))
    narrow(model, "u4.zero", TensorProto.UINT4, generator.integers(0, 16, columns))
    narrow(model, "u4.zeros", TensorProto.UINT4, generator.integers(0, 16, (3, columns)))
    return model, feeds


def test_weights_of_less_than_a_byte_are_right(tmp_path: Path) -> None:
    model, feeds = narrow_weights()
    ours, right = both(model, feeds, tmp_path)
    for output, a, b in zip(model.graph.output, ours, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max(), err_msg=output.name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits": 3}, "with bits=3; quantize to 2, 4 or 8 bits"),
        ({"weight_prepacked": 1}, "with weight_prepacked=1; use the model as it was before"),
        ({"order": "rows"}, "its input 5, 'rows', orders the rows"),
        ({"weight": "x"}, "its weight is computed when the model runs; it has to be a constant"),
    ],
)
def test_other_forms_of_packed_weights_are_refused_by_name(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    attributes = {"K": 16, "N": 2, "bits": 4, "block_size": 16}
    attributes |= {name: value for name, value in change.items() if isinstance(value, int)}
    inputs = ["x", change.get("weight", "w"), "s", *(["", change["order"]] if "order" in change else [])]
    weights = {"w": np.zeros((2, 1, 8), "u1"), "s": random(2, 1), "rows": np.zeros(16, "i4")}
    node = q.node("MatMulNBits", inputs, "y", q.MICROSOFT, **attributes)
    file = q.save(q.model([node], {"x": random(2, 16)}, {"y": "float32"}, weights), tmp_path / "m.onnx")
    with pytest.raises(InvalidArgument, match=rf"MatMulNBits \(com.microsoft, node 'y'\):? {says}"):
        import_uncut(file, {})


def test_four_bits_that_are_no_weights_are_refused_by_name(tmp_path: Path) -> None:
    model = q.model([q.node("Transpose", ["w"], "t"), q.node("DequantizeLinear", ["t", "s"], "y")], {}, {}, {"s": F(1)})
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2]))
    narrow(model, "w", TensorProto.UINT4, np.ones((2, 2), "i8"))
    with pytest.raises(InvalidArgument, match=r"Transpose \(ai.onnx, node 't'\): it is of uint4; quantize to int8"):
        import_uncut(q.save(model, tmp_path / "m.onnx"), {})


def test_tables_and_numbers_that_are_quantized_are_right(tmp_path: Path) -> None:
    """An embedding of words and one of positions, a divisor, and the value of a Pad, all as bytes."""
    net = q.Net()
    net.weights |= {"places": np.arange(5), "pads": np.array([0, 0, 1, 0, 0, 1]), "third": np.array(3, "i1")}
    net.weights |= {"two": np.array(100, "u1"), "two.s": F(0.02), "two.z": np.array(3, "u1"), "third.s": F(0.11)}
    net.nodes.append(q.node("DequantizeLinear", ["two", "two.s", "two.z"], "divisor"))
    net.nodes.append(q.node("DequantizeLinear", ["third", "third.s"], "border"))
    net.nodes.append(q.node("Gather", [net.weight("words", (20, 8), None), "x"], "w"))
    net.nodes.append(q.node("Gather", [net.weight("positions", (9, 8), None, "uint8"), "places"], "p"))
    net.nodes.append(q.node("Add", ["w", "p"], "e"))
    net.top = "e"
    net.quantized(0.05, 121)
    net.add("Div", "d", "divisor")
    net.add("Tanh", "t")
    net.quantized(1 / 128, 128)
    net.add("Pad", "padded", "pads", "border")
    net.quantized(1 / 128, 128)
    net.add("MatMul", "y", net.weight("last", (10, 3), None))
    feeds = {"x": np.array([[3, 1, 19, 0, 7]])}
    model = q.model(net.nodes, {}, {"y": "float32"}, net.weights)
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.INT64, [1, 5]))
    ours, right = both(model, feeds, tmp_path)
    assert_within_a_step(ours, right, ["y"])
    assert_within_a_step([a.astype("f8") for a in ours], in_float64(model, feeds), ["y"])


def test_images_of_bytes_are_resized_as_onnx_runtime_does(tmp_path: Path) -> None:
    nodes, outputs, feeds = [], {}, {}
    for kind in ("uint8", "int8"):
        feeds[kind] = q.bytes_(1, 2, 5, 7, kind=kind)
        for mode, how in (("linear", "half_pixel"), ("linear", "asymmetric"), ("nearest", "half_pixel")):
            outputs[f"{kind}.{mode}.{how}"] = kind
            given = {"mode": mode, "coordinate_transformation_mode": how}
            nodes.append(q.node("Resize", [kind, "", "", "sizes"], f"{kind}.{mode}.{how}", **given))
    model = q.model(nodes, feeds, outputs, {"sizes": np.array([1, 2, 11, 13])})
    ours, right = both(model, feeds, tmp_path)
    assert_within_a_step(ours, right, list(outputs))


@pytest.mark.parametrize("name", ["conv_net", "static", "dynamic"])
def test_whole_networks_are_as_exact_as_onnx_runtime_against_float64(name: str, tmp_path: Path) -> None:
    if name == "conv_net":
        file, shape = q.conv_net(tmp_path / "net.onnx")[0], (1, 3, 16, 16)
    else:
        file, shape = q.transformer(tmp_path / "net.onnx", name == "dynamic")[0], (1, 8, 16)
    model, feeds = onnx.load(file), {"x": random(*shape)}
    ours, theirs = both(model, feeds, tmp_path)
    (right,) = in_float64(model, feeds)
    mean, their_mean = (np.sqrt(((r[0] - right) ** 2).mean()) / np.abs(right).max() for r in (ours, theirs))
    assert mean <= 1.5 * their_mean + 1e-5, (mean, their_mean)
