"""Boundary tensors as float16 or int8: encoded on one side, decoded on the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from tvm import relax, tirx
from tvm.runtime import vm

from tests.support import onnx_models
from tests.support.bundle_secrets import assert_sealed
from tests.support.local_client import LocalClient, run_uncut
from workers.executor import GraphExecutor
from zmq_offload.artifacts.repository import Batching, Repository
from zmq_offload.byoc.encoding import WIRES, Wire, check_wire, decode, encode, wire_types
from zmq_offload.compile import compile_model, compile_module, partition_for_zmq_offload
from zmq_offload.compile.build import build
from zmq_offload.compile.target import host_target
from zmq_offload.device.model import load
from zmq_offload.errors import InvalidArgument

Array = np.ndarray[Any, Any]

ROWS, WIDTH = 3, 20


class Coder:
    """Compiled functions that encode and decode, with a scale for each row."""

    def __init__(self, wire: Wire) -> None:
        ty = relax.TensorType([tirx.Var("n", "int64"), WIDTH], "float32")
        self._encode = self._compile([ty], lambda builder, params: encode(builder, params[0], wire))
        self._decode = self._compile(wire_types(ty, wire), lambda b, params: [decode(b, params, wire)])

    def _compile(self, types: list[Any], body: Any) -> Any:
        builder = relax.BlockBuilder()
        params = [relax.Var(f"p{i}", ty) for i, ty in enumerate(types)]
        with builder.function("main", params):
            with builder.dataflow():
                out = builder.emit_output(relax.Tuple(body(builder, params)))
            builder.emit_func_output(out)
        return vm.VirtualMachine(build(builder.get(), host_target()), tvm.cpu())["main"]

    def encoded(self, x: Array) -> list[Array]:
        return [t.numpy() for t in self._encode(tvm.runtime.tensor(x))]

    def there_and_back(self, x: Array) -> Array:
        (result,) = self._decode(*self._encode(tvm.runtime.tensor(x)))
        return np.asarray(result.numpy())


@pytest.fixture(scope="module")
def coders() -> dict[str, Coder]:
    return {wire: Coder(wire) for wire in WIRES}


rows = hnp.arrays("f4", (ROWS, WIDTH), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@settings(deadline=None, max_examples=80)
@given(x=rows)
def test_float16_is_numpys_with_large_values_clipped_to_the_largest(coders: dict[str, Coder], x: Array) -> None:
    found = coders["float16"].there_and_back(x)
    np.testing.assert_array_equal(found, np.clip(x, -65504, 65504).astype("f2").astype("f4"))


def test_float16_keeps_infinities_and_nan(coders: dict[str, Coder]) -> None:
    x = np.zeros((1, WIDTH), "f4")
    x[0, :8] = np.inf, -np.inf, np.nan, 1e30, -1e30, 65520, -0.0, 65504
    found = coders["float16"].there_and_back(x)[0, :8]
    np.testing.assert_array_equal(found, np.array([np.inf, -np.inf, np.nan, 65504, -65504, 65504, 0, 65504], "f4"))


@settings(deadline=None, max_examples=80)
@given(x=rows)
def test_int8_is_off_by_at_most_half_a_step_of_the_rows_range_and_zero_stays_zero(
    coders: dict[str, Coder], x: Array
) -> None:
    found = coders["int8"].there_and_back(x).astype("f8")
    high, low = np.maximum(x.max(axis=1), 0).astype("f8"), np.minimum(x.min(axis=1), 0).astype("f8")
    step = np.maximum((high - low) / 255, 1e-37)
    assert (np.abs(found - x) <= step[:, None] * 0.501).all()
    assert (found[x == 0] == 0).all()


@settings(deadline=None, max_examples=20)
@given(x=rows)
def test_an_int8_row_has_the_same_bytes_alone_and_in_a_batch(coders: dict[str, Coder], x: Array) -> None:
    together = coders["int8"].encoded(x)
    for row in range(ROWS):
        for whole, alone in zip(together, coders["int8"].encoded(x[row : row + 1]), strict=True):
            np.testing.assert_array_equal(whole[row : row + 1], alone)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_an_int8_row_with_nan_or_infinity_is_all_nan_and_other_rows_are_not(
    coders: dict[str, Coder], odd: float
) -> None:
    x = onnx_models.random(ROWS, WIDTH)
    for place in (0, 7, WIDTH - 1):
        spoiled = x.copy()
        spoiled[1, place] = odd
        found = coders["int8"].there_and_back(spoiled)
        assert np.isnan(found[1]).all()
        np.testing.assert_allclose(found[[0, 2]], x[[0, 2]], atol=0.02)


def test_float32_is_left_alone(coders: dict[str, Coder]) -> None:
    x = onnx_models.random(ROWS, WIDTH)
    np.testing.assert_array_equal(coders["float32"].there_and_back(x), x)


@pytest.mark.parametrize("wire", ["bfloat16", "int4", "", None, 8, np.array([1])])
def test_an_unknown_encoding_is_refused(wire: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"wire .* is not an encoding; choose one of float32, float16, int8"):
        check_wire(wire)


@pytest.mark.parametrize(
    ("wire", "takes", "returns", "error"),
    [
        ("float16", ["features FP16[?,8,12,12]"], ["y FP16[?,10]"], 1e-3),
        (
            "int8",
            ["features INT8[?,8,12,12]", "features.scale FP32[?,2]"],
            ["y INT8[?,10]", "y.scale FP32[?,2]"],
            1e-2,
        ),
    ],
)
def test_a_split_model_computes_the_same_as_exactly_as_its_encoding_allows(
    convnet: Path, tmp_path: Path, wire: Wire, takes: list[str], returns: list[str], error: float
) -> None:
    compiled = compile_model(
        convnet,
        inputs={"x": ("N", 3, 12, 12)},
        cut="features",
        name="net",
        wire=wire,
        batching=Batching(8),
        output=tmp_path,
    )
    assert list(map(str, compiled.models[0].inputs)) == takes == list(map(str, compiled.manifest.offloaded[0].inputs))
    assert list(map(str, compiled.models[0].outputs)) == returns
    assert list(map(str, compiled.manifest.outputs)) == ["y FP32[?,10]"]
    # Rows of very different ranges, together and alone.
    x = onnx_models.random(3, 3, 12, 12) * np.array([1, 30, 0.01], "f4").reshape(3, 1, 1, 1)
    expected = run_uncut(convnet, {"x": (3, 3, 12, 12)}, [x])[0]
    model = load(compiled.device, client=LocalClient(tmp_path / "repository"))
    found = model(x)
    np.testing.assert_allclose(found, expected, atol=error)
    for row in range(3):
        np.testing.assert_allclose(model(x[row : row + 1])[0], found[row], atol=1e-6)
    assert np.abs(found - expected).max() > 1e-7  # it was encoded
    assert_sealed(convnet, compiled, "features")


def test_workers_batch_rows_of_several_requests(mlp: Path, tmp_path: Path) -> None:
    compiled = compile_model(
        mlp, inputs={"x": ("N", 8)}, cut="h2", until="h4", name="mlp", wire="int8", output=tmp_path
    )
    executor = GraphExecutor(Repository(tmp_path / "repository"), "mlp", 1)
    generator = np.random.default_rng(0)

    def request(rows: int, scale: float) -> list[Array]:
        return [generator.integers(-128, 127, (rows, 16), "i1"), np.tile(np.array([scale, 128], "f4"), (rows, 1))]

    requests = [request(1, 0.01), request(3, 2.0), request(2, 1e-4)]
    for ours, alone in zip(executor.run(requests), [executor.run([r])[0] for r in requests], strict=True):
        for array, other in zip(ours, alone, strict=True):
            np.testing.assert_array_equal(array, other)
    assert [t.name for t in compiled.models[0].outputs] == ["h4", "h4.scale"]


def mixed(path: Path) -> Path:
    """Floats and integers as inputs and outputs: x [4,8] FP32, i [4] INT64. "h.scale" is the name of a tensor."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Abs", ["i"], ["k"]),
        helper.make_node("Gather", ["h", "k"], ["rows"]),
        helper.make_node("Tanh", ["rows"], ["h.scale"]),
        helper.make_node("Add", ["h.scale", "h"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["labels"], axis=1, keepdims=0),
        helper.make_node("ReduceMax", ["y"], ["top"], axes=[0, 1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8]),
            helper.make_tensor_value_info("i", TensorProto.INT64, [4]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, [4]),
            helper.make_tensor_value_info("top", TensorProto.FLOAT, []),
        ],
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


X, INDICES = onnx_models.random(4, 8, seed=3), np.array([3, 0, 1, 1])


def test_float16_leaves_integers_as_they_are(tmp_path: Path) -> None:
    path = mixed(tmp_path / "m.onnx")
    compiled = compile_model(path, cut=["h", "k"], name="m", wire="float16", output=tmp_path)
    assert [str(t) for t in compiled.models[0].inputs] == ["h FP16[4,8]", "k INT64[4]"]
    assert [str(t) for t in compiled.models[0].outputs] == ["y FP16[4,8]", "labels INT64[4]", "top FP16[]"]
    found = load(compiled.device, client=LocalClient(tmp_path / "repository"))(X, INDICES)
    h = np.maximum(X, 0)
    expected = np.tanh(h[INDICES]) + h
    np.testing.assert_allclose(found[0], expected, atol=2e-3)
    np.testing.assert_array_equal(found[1], expected.argmax(axis=1))


def test_int8_for_an_integer_input_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"--wire int8: tensor k INT64\[4\] has integers.*use float16"):
        compile_model(mixed(tmp_path / "m.onnx"), cut=["h", "k"], name="m", wire="int8", output=tmp_path)
    assert not list(tmp_path.rglob("*.so"))


def test_int8_leaves_integer_outputs_and_tensors_that_would_not_become_smaller(tmp_path: Path) -> None:
    path = mixed(tmp_path / "m.onnx")
    compiled = compile_model(path, cut=["h", "rows"], name="m", wire="int8", output=tmp_path)
    assert [t.name for t in compiled.models[0].inputs] == ["h", "h.scale", "rows", "rows.scale"]
    assert [str(t) for t in compiled.models[0].outputs] == [
        "y INT8[4,8]",
        "y.scale FP32[2]",
        "labels INT64[4]",
        "top FP32[]",
    ]
    found = load(compiled.device, client=LocalClient(tmp_path / "repository"))(X, INDICES)
    expected = np.tanh(np.maximum(X, 0)[INDICES]) + np.maximum(X, 0)
    np.testing.assert_allclose(found[0], expected, atol=0.03)


def test_the_scales_of_a_tensor_get_an_unused_name(tmp_path: Path) -> None:
    compiled = compile_model(
        mixed(tmp_path / "m.onnx"), cut=["h", "h.scale"], until=["y"], name="m", wire="int8", output=tmp_path
    )
    assert [t.name for t in compiled.models[0].inputs] == ["h", "h.scale_", "h.scale", "h.scale.scale"]
    found = load(compiled.device, client=LocalClient(tmp_path / "repository"))(X, INDICES)
    expected = np.tanh(np.maximum(X, 0)[INDICES]) + np.maximum(X, 0)
    np.testing.assert_allclose(found[0], expected, atol=0.03)


def test_a_module_partitioned_by_patterns_is_encoded_too(tmp_path: Path) -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            h = builder.emit(relax.op.exp(x))
            s = builder.emit(relax.op.nn.relu(h))
            t = builder.emit_output(relax.op.negative(s))
        builder.emit_func_output(t)
    pattern = ("zmq_offload.relu", relax.dpl.is_op("relax.nn.relu")(relax.dpl.wildcard()))
    mod = partition_for_zmq_offload(builder.get(), [pattern])
    compiled = compile_module(mod, name="m", wire="float16", output=tmp_path)
    assert {t.datatype for t in (*compiled.models[0].inputs, *compiled.models[0].outputs)} == {"FP16"}
    x = onnx_models.random(2, 8)
    found = load(compiled.device, client=LocalClient(tmp_path / "repository"))(x)
    np.testing.assert_allclose(found, -np.exp(x), rtol=1e-3)
