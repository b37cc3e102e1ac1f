"""Models of float16 and bfloat16: computed in float32, with weights that keep their 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax, te, tirx
from tvm.runtime import vm

from tests.support.bundle_secrets import assert_runs_sealed
from tests.support.local_client import LocalClient
from zmq_offload.compile import compile_model, list_cuts
from zmq_offload.compile.build import build, export, prepared
from zmq_offload.compile.half import compute_in_float32
from zmq_offload.compile.onnx.importer import import_uncut
from zmq_offload.compile.target import host_target
from zmq_offload.device.model import load

Array = np.ndarray[Any, Any]
FLOAT32, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
NUMPY = {FLOAT32: np.dtype("f4"), FLOAT16: np.dtype("f2"), BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
node = helper.make_node


def save(path: Path, kind: int, nodes: list[onnx.NodeProto], weights: dict[str, Array], shape: list[int]) -> Path:
    """A model from `x` to `y`. Its float weights are rounded to bfloat16, which float16 can hold."""
    stored = {
        k: w.astype(ml_dtypes.bfloat16).astype(NUMPY[kind]) if w.dtype == np.float32 else w for k, w in weights.items()
    }
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(w, k) for k, w in stored.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    return path


def rounded(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype("f8")


def weight(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("f4") * np.float32(0.1)


def convnet() -> tuple[list[onnx.NodeProto], dict[str, Array], list[int]]:
    """A convolution of each kind, with what usually follows; Clip becomes a PrimFunc of TVM's importer."""
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["a"], pads=[1] * 4, strides=[2, 2]),
        node("Clip", ["a", "low", "high"], ["b"]),
        node("Conv", ["b", "w1"], ["c"], pads=[1] * 4, group=32),
        node("HardSwish", ["c"], ["d"]),
        node("Conv", ["d", "w2"], ["e"]),
        node("Add", ["b", "e"], ["f"]),
        node("ConvTranspose", ["f", "w3"], ["g"], strides=[2, 2]),
        node("MaxPool", ["g"], ["h"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["h"], ["i"]),
        node("Flatten", ["i"], ["j"]),
        node("Gemm", ["j", "w4", "b4"], ["k"], transB=1),
        node("Softmax", ["k"], ["y"]),
    ]
    weights = {
        "w0": weight(32, 3, 3, 3),
        "b0": weight(32),
        "low": np.zeros((), "f4"),
        "high": np.full((), 6, "f4"),
        "w1": weight(32, 1, 3, 3),
        "w2": weight(32, 32, 1, 1),
        "w3": weight(32, 48, 2, 2),
        "w4": weight(2000, 48),
        "b4": weight(2000),
    }
    return nodes, weights, [1, 3, 16, 16]


def attention() -> tuple[list[onnx.NodeProto], dict[str, Array], list[int]]:
    """Products with constant matrices and with each other, a normalization, and a table that is looked up."""
    nodes = [
        node("ArgMax", ["x"], ["ids"], axis=2, keepdims=0),
        node("Gather", ["table", "ids"], ["p"]),
        node("Add", ["x", "p"], ["a"]),
        node("LayerNormalization", ["a", "gain", "shift"], ["n"]),
        node("MatMul", ["n", "q"], ["b"]),
        node("MatMul", ["n", "k"], ["c"]),
        node("Transpose", ["c"], ["d"], perm=[0, 2, 1]),
        node("MatMul", ["b", "d"], ["e"]),
        node("Softmax", ["e"], ["f"]),
        node("MatMul", ["f", "n"], ["g"]),
        node("MatMul", ["g", "stack"], ["h"]),
        node("Add", ["h", "a"], ["y"]),
    ]
    weights = {
        "table": weight(3000, 64),
        "gain": weight(64) + 1,
        "shift": weight(64),
        "q": weight(64, 64),
        "k": weight(64, 64),
        "stack": weight(1, 64, 64),
    }
    return nodes, weights, [1, 7, 64]


NETS = {"convolutions": convnet, "attention": attention}


def library(path: Path, out: Path) -> Any:
    """`main` of the compiled model, from an array to an array."""
    target = host_target()
    export(build(import_uncut(path, {}), target), out, target)
    main = vm.VirtualMachine(tvm.runtime.load_module(str(out)), tvm.cpu())["main"]
    return lambda x: main(tvm.runtime.tensor(x)).numpy()


@pytest.fixture(scope="module")
def wide_sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The bytes of each network's library with weights of 32 bits."""
    folder = tmp_path_factory.mktemp("wide")
    for net, made in NETS.items():
        library(save(folder / f"{net}.onnx", FLOAT32, *made()), folder / f"{net}.so")
    return {net: (folder / f"{net}.so").stat().st_size for net in NETS}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def test_half_is_as_accurate_as_float32_and_half_as_large(
    net: str, kind: int, wide_sizes: dict[str, int], tmp_path: Path
) -> None:
    nodes, weights, shape = NETS[net]()
    wide = save(tmp_path / "wide.onnx", FLOAT32, nodes, weights, shape)
    half = save(tmp_path / "half.onnx", kind, nodes, weights, shape)
    x = np.random.default_rng(1).standard_normal(shape).astype(ml_dtypes.bfloat16)
    (want,) = onnxruntime.InferenceSession(wide, providers=["CPUExecutionProvider"]).run(None, {"x": x.astype("f4")})
    # A model of bfloat16 takes and returns float32: NumPy has no bfloat16.
    border = "f2" if kind == FLOAT16 else "f4"
    got = library(half, tmp_path / "half.so")(x.astype(border))
    assert got.dtype == border
    # One rounding, of the result, and float32's own error.
    step = float(np.finfo(border).eps)
    np.testing.assert_allclose(got.astype("f8"), want, rtol=step, atol=1e-5 * float(np.abs(want).max()))
    stored = sum(w.nbytes for w in weights.values() if w.dtype == np.float32)
    saved = wide_sizes[net] - (tmp_path / "half.so").stat().st_size
    assert saved > 0.4 * stored


def test_only_the_border_and_large_weights_have_16_bits(tmp_path: Path) -> None:
    nodes, weights, shape = convnet()
    mod = prepared(import_uncut(save(tmp_path / "m.onnx", FLOAT16, nodes, weights, shape), {}))
    half = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(getattr(expr, "ty", None), relax.TensorType) and str(expr.ty.dtype) == "float16":
            half.append(type(expr).__name__)

    relax.analysis.post_order_visit(mod["main"], visit)
    assert half.count("GenericConst") == 3  # the smaller ones, and vectors, are not worth a conversion in a kernel
    assert "Call" in half and half.count("Call") == 1  # the cast of the result
    used = {gv.name_hint for gv in relax.analysis.all_global_vars(mod["main"])}
    assert used and all("float16" not in mod[name].script() for name in used)


def test_values_beyond_float16_are_those_of_float32_inside_a_function(tmp_path: Path) -> None:
    nodes = [node("Mul", ["x", "k"], ["a"]), node("Mul", ["a", "k"], ["b"]), node("Div", ["b", "l"], ["y"])]
    path = save(tmp_path / "m.onnx", FLOAT16, nodes, {"k": np.full(1, 1024, "f4"), "l": np.full(1, 2**18, "f4")}, [3])
    # 2^18 is infinite in float16: as a weight of the file it stays so. 2^20 x is a value inside the function.
    assert library(path, tmp_path / "m.so")(np.float16([1, 2, np.inf])).tolist()[:2] == [0.0, 0.0]
    nodes[2] = node("Mul", ["b", "l"], ["y"])
    path = save(
        tmp_path / "n.onnx", FLOAT16, nodes, {"k": np.full(1, 1024, "f4"), "l": np.full(1, 2.0**-18, "f4")}, [3]
    )
    assert library(path, tmp_path / "n.so")(np.float16([1, 2, np.inf])).tolist() == [4.0, 8.0, np.inf]


def test_casts_inside_a_mixed_model_cost_nothing(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["x"], ["a"], to=FLOAT16),
        node("MatMul", ["a", "w"], ["b"]),
        node("Cast", ["b"], ["c"], to=FLOAT32),
        node("Relu", ["c"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", FLOAT32, nodes, {"w": np.zeros(1, "f4")}, [4, 40])
    model = onnx.load(path)
    half = weight(40, 72).astype("f2")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "w"))
    onnx.save(model, path)
    casts = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and getattr(expr.op, "name", "") == "relax.astype":
            casts.append(type(expr.args[0]).__name__)

    relax.analysis.post_order_visit(prepared(import_uncut(path, {}))["main"], visit)
    assert casts == ["GenericConst"]
    x = weight(4, 40)
    want = np.maximum(x.astype("f8") @ half.astype("f8"), 0)
    np.testing.assert_allclose(library(path, tmp_path / "m.so")(x), want, rtol=1e-5, atol=1e-6)


def test_calls_of_other_functions_keep_their_datatypes() -> None:
    """As on a device, whose module calls subgraphs by name."""
    tensor = relax.TensorType([2, 3], "float16")
    x = relax.Var("x", tensor)
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            half = builder.emit(relax.op.exp(x))
            called = builder.emit(relax.call_dps_packed("elsewhere", relax.Tuple([half]), tensor))
            both = builder.emit(relax.op.add(called, half))
            pair = builder.emit_output(relax.Tuple([both, called]))
        builder.emit_func_output(pair)
    mod = compute_in_float32(builder.get())
    relax.analysis.well_formed(mod)  # raises
    assert str(mod["main"].ret_ty) == str(relax.TupleType([tensor, tensor]))
    calls = {}

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and hasattr(expr.op, "name"):
            calls[expr.op.name] = expr

    relax.analysis.post_order_visit(mod["main"], visit)
    assert str(calls["relax.call_dps_packed"].ty.dtype) == "float16"
    assert str(calls["relax.call_dps_packed"].args[1].fields[0].ty.dtype) == "float16"
    assert {str(calls[f"relax.{name}"].ty.dtype) for name in ("exp", "add")} == {"float32"}


def test_branches_and_symbolic_extents() -> None:
    n = tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType([n, 4], "float16"))
    flag = relax.Var("flag", relax.TensorType([], "bool"))
    builder = relax.BlockBuilder()
    with builder.function("main", [flag, x]):
        doubled = builder.emit(relax.op.add(x, x))
        chosen = builder.emit(relax.If(flag, relax.SeqExpr([], doubled), relax.SeqExpr([], x)))
        builder.emit_func_output(builder.emit(relax.op.multiply(chosen, relax.const(np.float16(3)))))
    mod = compute_in_float32(builder.get())
    relax.analysis.well_formed(mod)  # raises
    main = vm.VirtualMachine(build(builder.get(), host_target()), tvm.cpu())["main"]
    given = np.float16([[1, 2, 3, 4]])
    for condition, factor in ((True, 6), (False, 3)):
        out = main(tvm.runtime.tensor(np.array(condition)), tvm.runtime.tensor(given)).numpy()
        np.testing.assert_array_equal(out, given * np.float16(factor))


def test_prim_functions_of_the_importer_compute_in_float32() -> None:
    x = relax.Var("x", relax.TensorType([5], "float16"))
    builder = relax.BlockBuilder()

    def squares(t: te.Tensor) -> te.Tensor:
        return te.compute(t.shape, lambda i: t[i] * t[i], name="squares")

    with builder.function("main", [x]):
        square = builder.emit_te(squares, x)
        builder.emit_func_output(builder.emit(relax.op.sqrt(square)))
    main = vm.VirtualMachine(build(builder.get(), host_target()), tvm.cpu())["main"]
    given = np.float16([300, -1e-4, 0, 2, 60000])
    np.testing.assert_array_equal(main(tvm.runtime.tensor(given)).numpy(), np.abs(given))


def test_a_batch_normalization_of_bfloat16_is_imported(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["y"]),
    ]
    weights = {name: np.abs(weight(8)) for name in ("scale", "shift", "mean", "variance")} | {"w": weight(8, 3, 3, 3)}
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype("f4")
    wide = save(tmp_path / "wide.onnx", FLOAT32, nodes, weights, [1, 3, 6, 6])
    (want,) = onnxruntime.InferenceSession(wide, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    half = save(tmp_path / "half.onnx", BFLOAT16, nodes, weights, [1, 3, 6, 6])
    np.testing.assert_allclose(library(half, tmp_path / "m.so")(x), want, rtol=1e-4, atol=1e-5)


def test_a_model_of_bfloat16_is_cut_like_one_of_float32(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "v"], ["a"]),
        node("Relu", ["a"], ["h"]),
        node("MatMul", ["h", "w"], ["b"]),
        node("Softmax", ["b"], ["y"]),
    ]
    weights = {"v": weight(40, 64), "w": weight(64, 2000)}
    path = save(tmp_path / "m.onnx", BFLOAT16, nodes, weights, [2, 40])
    assert [str(point.tensor) for point in list_cuts(path)][:3] == ["x FP32[2,40]", "a FP32[2,64]", "h FP32[2,64]"]
    compiled = compile_model(path, cut="h", name="net", output=tmp_path / "dist")
    (subgraph,) = compiled.subgraphs
    assert (subgraph / "subgraph.so").stat().st_size < 0.8 * 64 * 2000 * 4
    x = np.random.default_rng(0).standard_normal((2, 40)).astype("f4")
    got = load(compiled.device, client=LocalClient(tmp_path / "dist" / "repository"))(x)
    exact = np.maximum(x.astype("f8") @ rounded(weights["v"]), 0) @ rounded(weights["w"])
    want = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_resize_and_recurrent_networks_of_bfloat16(tmp_path: Path) -> None:
    nodes = [
        node("Resize", ["x", "", "scales"], ["a"], mode="linear"),
        node("LSTM", ["a", "w", "r"], ["", "h"], hidden_size=4),
        node("Identity", ["h"], ["y"]),
    ]
    weights = {"w": weight(1, 16, 12), "r": weight(1, 16, 4)}
    x = np.random.default_rng(0).standard_normal((5, 2, 6)).astype("f4")
    outputs = []
    for kind in (FLOAT32, BFLOAT16):
        path = save(tmp_path / f"{kind}.onnx", kind, nodes, weights, [5, 2, 6])
        model = onnx.load(path)
        model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 1, 2]), "scales"))
        onnx.save(model, path)
        outputs.append(library(path, tmp_path / f"{kind}.so")(x))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def test_the_device_bundle_has_no_offloaded_weight(kind: int, tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "own"], ["a"], pads=[1] * 4),
        node("Relu", ["a"], ["features"]),
        node("Conv", ["features", "hidden"], ["b"], pads=[1] * 4),
        node("Flatten", ["b"], ["c"]),
        node("MatMul", ["c", "head"], ["y"]),
    ]
    weights = {"own": weight(48, 32, 3, 3), "hidden": weight(32, 48, 3, 3), "head": weight(512, 64)}
    path = save(tmp_path / "m.onnx", kind, nodes, weights, [1, 32, 4, 4])
    compiled = compile_model(path, cut="features", name="m", output=tmp_path / "dist")
    stored = {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    own, hidden = (stored[name].reshape(len(stored[name]), -1).T for name in ("own", "hidden"))
    taps = [w.reshape(-1, 9, w.shape[1])[:, 0] for w in (own, hidden)]  # (channels, results) of one tap
    assert_runs_sealed(compiled, [taps[1], stored["head"]], [taps[0]])


def test_rows_of_a_constant_mask_without_a_key_are_found(tmp_path: Path) -> None:
    # TVM folds bfloat16, and started its maximum at the last finite number.
    mask = np.array([[0, 0], [-np.inf, -np.inf]], ml_dtypes.bfloat16)
    nodes = [
        node("Pad", ["m", "pads", "least"], ["padded"]),
        node("Add", ["x", "padded"], ["scores"]),
        node("Softmax", ["scores"], ["p"]),
        node("ReduceMax", ["padded", "last"], ["largest"]),
        node("Equal", ["largest", "least"], ["empty"]),
        node("Where", ["empty", "zero", "p"], ["y"]),
    ]
    weights = {
        "m": mask,
        "pads": np.array([0, 0, 0, 1]),
        "least": np.array(-np.inf, ml_dtypes.bfloat16),
        "last": np.array([1]),
        "zero": np.array(0, ml_dtypes.bfloat16),
    }
    path = save(tmp_path / "m.onnx", BFLOAT16, nodes, weights, [2, 3])
    library = build(import_uncut(path, {}), host_target())
    y = vm.VirtualMachine(library, tvm.cpu())["main"](tvm.runtime.tensor(np.zeros((2, 3), "f4")))
    y = y if isinstance(y, tvm.runtime.Tensor) else y[0]
    np.testing.assert_allclose(y.numpy(), [[0.5, 0.5, 0], [0, 0, 0]])
