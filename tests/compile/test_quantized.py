"""Quantized models are imported, computed in integers, and right: beside ONNX Runtime and a float64 evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tests.support import quantized_models as q
from tests.support.bundle_secrets import contents
from tests.support.float64 import in_float64
from tests.support.local_client import LocalClient
from zmq_offload.artifacts.manifest import LIBRARY
from zmq_offload.compile import UncutModel, compile_model, compile_uncut, list_cuts
from zmq_offload.compile.build import prepared
from zmq_offload.compile.onnx.importer import import_uncut
from zmq_offload.compile.quantization.affine import Affine
from zmq_offload.device.model import load
from zmq_offload.errors import InvalidArgument

Array = np.ndarray[Any, Any]
F = np.float32


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def both(
    model: onnx.ModelProto,
    feeds: dict[str, Array],
    folder: Path,
    shapes: dict[str, tuple[int | str, ...]] | None = None,
) -> tuple[list[Array], list[Array]]:
    """Our outputs and ONNX Runtime's."""
    import onnxruntime

    file = q.save(model, folder / "m.onnx")
    compile_uncut(file, folder / "m.so", inputs=shapes)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    ours = UncutModel(folder / "m.so")(*(feeds[i.name] for i in session.get_inputs()))
    return ours, session.run(None, feeds)


def assert_within_a_step(ours: list[Array], right: list[Array], names: list[str]) -> None:
    for name, a, b in zip(names, ours, right, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        apart = np.abs(a.astype("f8") - b.astype("f8"))
        if a.dtype.kind == "f":
            assert apart.max() <= 1e-5 * np.abs(b).max(), name
        else:
            assert apart.max() <= 1 and (apart > 0).mean() < 0.03, name


def operators() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Each operator on quantized tensors, with an output of its own."""
    nodes: list[onnx.NodeProto] = []
    outputs: dict[str, str] = {}
    feeds = {
        "x": q.bytes_(2, 4, 9, 9, kind="uint8"),
        "m": q.bytes_(3, 7, 16, kind="uint8", seed=1),
        "n": q.bytes_(3, 16, 5, kind="uint8", seed=2),
        "g": q.bytes_(7, 16, kind="uint8", seed=3),
        "r": random(3, 7, 16),
    }
    weights: dict[str, Any] = {
        **{"xs": F(0.03), "xz": np.uint8(120), "ys": F(0.9), "yz": np.uint8(110), "zs": F(0.05), "ss": F(1 / 256)},
        **{
            "s0": np.uint8(0),
            "ws": F(0.02),
            "wz": np.int8(3),
            "uz": np.uint8(131),
            "cs": random(8) ** 2 * 0.01 + F(0.01),
        },
        **{"cz": np.zeros(8, np.int8), "w": q.bytes_(8, 4, 3, 3), "wg": q.bytes_(8, 2, 3, 3, kind="uint8", seed=4)},
        **{"b": np.arange(-4000, 4000, 1000, dtype="i4"), "k": q.bytes_(16, 5), "ks": random(5) ** 2 + F(0.01)},
        **{"kz": np.zeros(5, np.int8), "kb": np.arange(5, dtype="i4") * 100, "fb": random(5), "kt": q.bytes_(5, 16)},
        **{"hit": random(4, 1, 9) > 0, "ku": q.bytes_(16, 5, kind="uint8"), "kuz": q.bytes_(5, kind="uint8")},
        **{"qkv": q.bytes_(16, 48), "qb": random(48)},
    }

    def add(operator: str, inputs: str, kind: str = "uint8", domain: str = q.MICROSOFT, **attributes: Any) -> None:
        name = f"{operator}.{len(outputs)}"
        outputs[name] = kind
        given = ["" if i == "-" else i for i in inputs.split()]
        nodes.append(q.node(operator, given, name, "" if domain == "onnx" else domain, **attributes))

    add("QLinearConv", "x xs xz w cs cz ys yz b", domain="onnx", pads=[1] * 4)
    add("QLinearConv", "x xs xz wg ws uz ys yz", domain="onnx", pads=[1, 0, 0, 1], group=2, strides=[2, 1])
    add("QLinearConv", "x xs xz w ws wz ys yz", domain="onnx", auto_pad="SAME_UPPER", strides=[2, 2])
    add("QLinearMatMul", "m xs xz k ws wz ys yz", domain="onnx")
    add("QLinearMatMul", "m xs xz k ks kz ys yz", domain="onnx")
    add("QLinearMatMul", "m xs xz n ws uz ys yz", domain="onnx")
    add("QGemm", "g xs xz kt ws wz kb ys yz", transB=1)
    add("QGemm", "g xs xz k ks kz kb", "float32", alpha=0.5)
    add("QLinearAdd", "x xs xz x ws uz zs yz")
    add("QLinearMul", "x xs xz x ws uz zs yz")
    add("QLinearSigmoid", "x xs xz ss s0")
    add("QLinearLeakyRelu", "x xs xz zs yz", alpha=0.1)
    add("QLinearAveragePool", "x xs xz zs yz", kernel_shape=[3, 3], pads=[1] * 4)
    add("QLinearGlobalAveragePool", "x xs xz zs yz")
    add("QLinearSoftmax", "x xs xz ss s0", axis=1, opset=11)
    add("QLinearSoftmax", "x xs xz ss s0", axis=1, opset=13)
    add("QLinearConcat", "zs yz x xs xz x ws uz", axis=1)
    add("QLinearWhere", "hit x xs xz x ws uz zs yz")
    add("DynamicQuantizeMatMul", "r ku ks kuz fb", "float32")
    add("MatMulIntegerToFloat", "m k xs ks xz kz fb", "float32")
    add("QAttention", "m qkv qb ws ws - xz wz", "float32", num_heads=2)
    add("QuantizeLinear", "r zs yz")
    add("DequantizeLinear", "x zs yz", "float32")
    return q.model(nodes, feeds, outputs, weights), feeds


def test_operators_on_quantized_tensors_are_right(tmp_path: Path) -> None:
    model, feeds = operators()
    ours, right = both(model, feeds, tmp_path)
    assert_within_a_step(ours, right, [o.name for o in model.graph.output])


def test_products_of_integers_are_exact(tmp_path: Path) -> None:
    """Signed and unsigned, constant and computed weights, zero points of all forms."""
    nodes: list[onnx.NodeProto] = []
    feeds: dict[str, Array] = {"zero": np.array(77, np.uint8)}
    weights: dict[str, Any] = {}
    outputs: dict[str, str] = {}
    for a in ("uint8", "int8"):
        feeds |= {f"a.{a}": q.bytes_(3, 6, 16, kind=a), f"b.{a}": q.bytes_(16, 5, kind=a, seed=1)}
        feeds[f"x.{a}"] = q.bytes_(1, 4, 7, 7, kind=a, seed=2)
        weights |= {f"w.{a}": q.bytes_(16, 5, kind=a, seed=3), f"z.{a}": np.array(5, a), f"v.{a}": q.bytes_(16, kind=a)}
        weights |= {f"col.{a}": q.bytes_(5, kind=a, seed=4), f"k.{a}": q.bytes_(4, 2, 3, 3, kind=a, seed=5)}
    kinds = ("uint8", "int8")
    products = [
        *([f"a.{a}", f"{w}.{b}"] for a in kinds for b in kinds for w in "wb"),
        *([f"a.{a}", f"w.{b}", f"z.{a}", f"col.{b}"] for a in kinds for b in kinds),
        *([f"a.{a}", f"b.{b}", f"z.{a}", f"z.{b}"] for a in kinds for b in kinds),
        *([f"a.{a}", f"v.{b}", f"z.{a}", f"z.{b}"] for a in kinds for b in kinds),
        ["a.uint8", "w.int8", "zero", "col.int8"],
    ]
    convolutions = [
        *([f"x.{a}", f"k.{b}", f"z.{a}", f"z.{b}"] for a in kinds for b in kinds),
        ["x.uint8", "k.int8", "zero"],
        ["x.uint8", "k.uint8", "zero", "z.uint8"],
    ]
    for number, inputs in enumerate([*products, *convolutions]):
        name = f"y{number}"
        outputs[name] = "int32"
        if inputs in convolutions:
            nodes.append(q.node("ConvInteger", inputs, name, pads=[1, 0, 2, 1], strides=[1, 2], group=2))
        else:
            nodes.append(q.node("MatMulInteger", inputs, name))
    ours, right = both(q.model(nodes, feeds, outputs, weights), feeds, tmp_path)
    for name, a, b in zip(outputs, ours, right, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def qdq_cases() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Convolutions and products in QDQ form, with activations, with and without a last QuantizeLinear."""
    net = q.Net()
    x, signed = random(2, 4, 9, 9) * 2, random(2, 4, 9, 9, seed=1)
    net.quantized(0.03, 120)
    image = net.top
    net.weights |= {"low": F(0), "high": F(6)}
    outputs: dict[str, str] = {}

    def end(kind: str, scale: float = 0.05, zero: int = 110) -> None:
        if kind == "uint8":
            outputs[net.quantized(scale, zero)] = kind
        else:
            outputs[net.top] = kind

    for number, (activation, kind, per_channel) in enumerate(
        (
            *((None, "uint8", True), ("Relu", "uint8", False), ("Clip", "uint8", True), ("HardSwish", "uint8", True)),
            *((None, "float32", True), ("Relu", "float32", False)),
        )
    ):
        net.top = image
        weight = net.weight(f"w{number}", (8, 4, 3, 3), 0 if per_channel else None)
        net.add("Conv", f"c{number}", weight, net.bias(f"b{number}", f"w{number}", 0.03), pads=[1] * 4)
        if activation is not None:
            net.add(activation, f"a{number}", *(("low", "high") if activation == "Clip" else ()))
        end(kind)
    net.top = image
    net.add("Conv", "dw", net.weight("dww", (4, 1, 3, 3), 0, "uint8"), group=4, dilations=[2, 2])
    end("uint8")
    for name, options in (("t1", {"strides": [2, 2], "output_padding": [1, 1]}), ("t2", {"dilations": [1, 2]})):
        net.top = image
        net.add("ConvTranspose", name, net.weight(f"{name}w", (4, 6, 3, 3), 1), pads=[1] * 4, **options)
        end("uint8")
    net.top = image
    # Quantization-aware training leaves float weights, which the graph quantizes.
    net.weights |= {
        "qat": random(8, 4, 3, 3),
        "qat.scale": np.abs(random(8, seed=3)) / 50,
        "qat.zero": np.zeros(8, "i1"),
    }
    net.nodes.append(q.node("QuantizeLinear", ["qat", "qat.scale", "qat.zero"], "qat.q", axis=0))
    net.nodes.append(q.node("DequantizeLinear", ["qat.q", "qat.scale", "qat.zero"], "qat.d", axis=0))
    net.add("Conv", "trained", "qat.d")
    end("uint8")
    net.top = image
    net.add("MaxPool", "p", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    net.add("Transpose", "t", perm=[0, 2, 3, 1])
    net.add("MatMul", "mm", net.weight("mw", (4, 5), 1))
    end("uint8", 0.02)
    net.top = "s"
    net.quantized(0.02, 0, "int8")
    left = net.top
    net.add("Transpose", "st", perm=[0, 1, 3, 2])
    turned = net.top
    net.top = left
    net.add("MatMul", "att", turned)
    end("uint8", 0.1)
    net.top = image
    net.add("Flatten", "flat")
    net.add("Gemm", "ge", net.weight("gw", (7, 324), 0), net.bias("gb", "gw", 0.03), transB=1, alpha=0.5)
    end("uint8", 0.2)
    feeds = {"x": x, "s": signed}
    return q.model(net.nodes, feeds, outputs, net.weights, opset=21), feeds


def test_integers_are_as_exact_as_onnx_runtime_against_float64(tmp_path: Path) -> None:
    model, feeds = qdq_cases()
    ours, theirs = both(model, feeds, tmp_path)
    right = in_float64(model, feeds)
    for output, a, b, c in zip(model.graph.output, ours, theirs, right, strict=True):
        off, of = (np.abs(v.astype("f8") - c.astype("f8")).max() for v in (a, b))
        step = 1.0 if a.dtype.kind != "f" else 1e-5 * np.abs(c).max()
        assert off <= step and off <= of + step, (output.name, off, of)


def test_convolutions_and_products_have_int32_sums(tmp_path: Path) -> None:
    model, _ = qdq_cases()
    mod = prepared(import_uncut(q.save(model, tmp_path / "m.onnx"), {}))
    bindings = [b for block in mod["main"].body.blocks for b in block.bindings]
    calls = [b.value for b in bindings if isinstance(b.value, tvm.ir.Call)]
    products = [c for c in calls if re.search("conv|matmul", c.op.name)]
    assert len(products) == 13
    for call in products:
        assert str(call.ty.dtype) == "int32" and str(call.args[1].ty.dtype) == "int8", call
    assert not any(c.op.name in ("relax.quantize", "relax.dequantize") for c in calls)
    moved = [c for c in calls if c.op.name in ("relax.nn.max_pool2d", "relax.permute_dims", "relax.nn.pad")]
    assert moved and all(str(c.ty.dtype) in ("int8", "uint8") for c in moved)


@given(
    st.lists(
        st.tuples(st.sampled_from(["multiply", "add", "subtract", "divide", "maximum", "minimum"]), st.floats(0.1, 9)),
        max_size=8,
    ),
    st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=20),
)
def test_steps_after_the_sums_join_into_one(steps: list[tuple[str, float]], sums: list[int]) -> None:
    values = np.array(sums, "f8")
    expected, affine = values.copy(), Affine()
    for name, number in steps:
        expected = getattr(np, name)(expected, number)
        assert affine.follow(f"relax.{name}", np.array(number))
    found = np.clip(values * affine.scale + affine.bias, affine.lowest, affine.highest)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(values).max())


def test_a_negative_factor_does_not_join() -> None:
    assert not Affine().follow("relax.multiply", np.array(-1.0))


@pytest.mark.parametrize(
    ("kind", "operator", "says"),
    [
        (TensorProto.INT4, "DequantizeLinear", "DequantizeLinear .* of int4"),
        (TensorProto.FLOAT8E4M3FN, "DequantizeLinear", "DequantizeLinear .* of float8_e4m3fn"),
        (TensorProto.INT4, "QuantizeLinear", "QuantizeLinear .* of int4"),
    ],
)
def test_other_datatypes_are_refused_by_name(kind: int, operator: str, says: str, tmp_path: Path) -> None:
    nodes = [q.node(operator, ["x", "s", "z"], "y")]
    takes, gives = (TensorProto.FLOAT, kind) if operator == "QuantizeLinear" else (kind, TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", takes, [4])],
        [helper.make_tensor_value_info("y", gives, [4])],
        [numpy_helper.from_array(F(1), "s"), helper.make_tensor("z", kind, [], [0])],
    )
    file = q.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m")
    file = file.rename(tmp_path / "m.onnx")
    with pytest.raises(InvalidArgument, match=says):
        import_uncut(file, {})


def test_a_cut_at_bytes_sends_bytes_and_keeps_the_weights_secret(tmp_path: Path) -> None:
    """Two models that differ in the region's weights only have the same device bundle, but for the symbol."""
    file, cut = q.conv_net(tmp_path / "m.onnx")
    assert cut in [point.name for point in list_cuts(file)]
    x = random(1, 3, 16, 16)
    bundles = []
    for change in (0, 1):
        model = onnx.load(file)
        for weight in model.graph.initializer:
            if weight.name in ("w2", "w3", "b2", "b3"):
                array = numpy_helper.to_array(weight)
                weight.CopyFrom(numpy_helper.from_array(np.roll(array, change), weight.name))
        changed = q.save(model, tmp_path / f"{change}.onnx")
        compiled = compile_model(changed, cut=cut, name="m", output=tmp_path / str(change), check=True)
        (spec,) = compiled.models[0].inputs
        assert (spec.datatype, spec.shape) == ("UINT8", (1, 16, 16, 16))
        client = LocalClient(tmp_path / str(change) / "repository")
        assert_within_a_step([load(compiled.device, client=client)(x)], both(model, {"x": x}, tmp_path)[1], ["y"])
        bundles.append((compiled.device / LIBRARY).read_bytes())
        device = contents(compiled.device)
        for weight in model.graph.initializer:
            if weight.name in ("w2", "w3"):
                array = numpy_helper.to_array(weight)
                for form in (array, array.T, np.moveaxis(array, 0, -1), np.moveaxis(array, 1, -1)):
                    assert np.ascontiguousarray(form).tobytes()[:12] not in device
    a, b = (np.frombuffer(bundle, "u1") for bundle in bundles)
    # The symbol is a digest of the region, and the table of symbols has its hash.
    assert len(a) == len(b) and (a != b).sum() < 200


def test_a_cut_inside_a_dynamically_quantized_model_works(tmp_path: Path) -> None:
    file, cut = q.dynamic_net(tmp_path / "m.onnx")
    compiled = compile_model(file, cut=cut, name="m", output=tmp_path / "dist", check=True)
    x = random(1, 12, 32)
    found = load(compiled.device, client=LocalClient(tmp_path / "dist" / "repository"))(x)
    np.testing.assert_allclose(found, both(onnx.load(file), {"x": x}, tmp_path)[1][0], rtol=1e-5, atol=1e-5)


def test_symbolic_extents_are_computed_in_integers_too(tmp_path: Path) -> None:
    """Padding with a zero point that is computed when the model runs needs the extents of the image then."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["b", "scale", "zero"]),
        q.node("ConvInteger", ["b", "w", "zero"], "y", pads=[1] * 4),
    ]
    feeds = {"x": random(2, 4, 7, 9)}
    model = q.model(nodes, feeds, {"y": "int32"}, {"w": q.bytes_(8, 4, 3, 3)})
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim, ("N", "", "H", "W"), strict=True):
        if name:
            dim.dim_param = name
    ours, right = both(model, feeds, tmp_path, {"x": ("N", 4, "H", "W")})
    np.testing.assert_array_equal(ours[0], right[0])


def test_an_unquantized_module_is_left_as_it_is() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 2), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.add(x, x)))
    from zmq_offload.compile.quantization.qdq import integer_products

    mod = builder.get()
    assert integer_products(mod) is mod


def test_a_gate_that_is_broadcast_after_its_sums_has_a_kernel(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Squeeze-and-excitation: the result of a small product is multiplied with a large tensor in the same function."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["s"], ["b", "scale", "zero"]),
        q.node("ConvInteger", ["b", "w", "zero"], "i"),
        q.node("Cast", ["i"], "f", to=TensorProto.FLOAT),
        q.node("Mul", ["f", "scale"], "g"),
        q.node("Mul", ["g", "x"], "y"),
    ]
    feeds = {"s": random(1, 16, 1, 1), "x": random(1, 96, 6, 6)}
    ours, right = both(q.model(nodes, feeds, {"y": "float32"}, {"w": q.bytes_(96, 16, 1, 1)}), feeds, tmp_path)
    assert_within_a_step(ours, right, ["y"])
    assert not caplog.records
