"""NaN, infinities, zeros, and integers without a quotient give the results of ONNX Runtime, or of NumPy where those of
ONNX Runtime depend on the place of a NaN."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import helper, numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.schedule_harness import HOST, TARGETS
from zmq_offload.compile.build import build
from zmq_offload.schedules import schedule

Array = np.ndarray[Any, Any]
NAN, INF = np.nan, np.inf
X = np.float32(
    [NAN, INF, -INF, 0.0, -0.0, 1e-45, -1e-45, 1e-39, 0.5, -0.5, 1, -1, 2.5, -2.5, 88, -88, 104, 3e38, -3e38]
)
ROWS = np.float32(
    [
        [NAN] + [1] * 31,
        [1] * 31 + [NAN],
        [1] * 10 + [NAN] + [2] * 21,
        [-INF] * 32,
        [INF] + [0] * 31,
        [0] * 16 + [-INF] * 16,
        [np.finfo("float32").min] * 32,
    ]
)
paths = pytest.mark.parametrize("path", ["rules", "default"])


def model(op: str, feeds: list[Array], opset: int = 17, consts: list[Array] | None = None, **attributes: Any) -> Any:
    names = [f"x{i}" for i in range(len(feeds))]
    weights = [numpy_helper.from_array(np.asarray(c), f"c{i}") for i, c in enumerate(consts or [])]
    graph = helper.make_graph(
        [helper.make_node(op, [*names, *(w.name for w in weights)], ["y"], **attributes)],
        "special",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in zip(names, feeds, strict=True)
        ],
        [onnx.ValueInfoProto(name="y")],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def ours(made: onnx.ModelProto, feeds: list[Array], path: str, monkeypatch: pytest.MonkeyPatch) -> Array:
    """Run the model with the rules for this CPU ("rules"), for a narrower one, or with TVM's default schedules."""
    if path == "default":
        monkeypatch.setattr(schedule, "schedule", lambda func, machine: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the importer warns about a model without its result's shape
        mod = from_onnx(made, opset=made.opset_import[0].version)
    vm = relax.VirtualMachine(build(mod, TARGETS[-1] if path == "narrow" else HOST), tvm.cpu())
    out = vm["main"](*(tvm.runtime.tensor(x) for x in feeds))
    result: Array = (out if hasattr(out, "numpy") else out[0]).numpy()
    return result


def reference(made: onnx.ModelProto, feeds: list[Array]) -> Array:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {f"x{i}": x for i, x in enumerate(feeds)})[0]
    return result


def same(got: Array, want: Array) -> None:
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-37, equal_nan=True)


PAIR = [X, np.roll(X, 7)]
LIMITS = [np.float32(-1), np.float32(2)]
LIKE_ONNX_RUNTIME: dict[str, tuple[Any, ...]] = {
    **{op: (op, [X]) for op in ("Relu", "LeakyRelu", "HardSigmoid", "HardSwish", "ThresholdedRelu", "Sign", "Abs")},
    **{op: (op, [X]) for op in ("Sqrt", "Log", "Exp", "Tanh", "Erf", "Softplus", "Softsign", "Elu", "Selu", "Round")},
    "Sigmoid of what does not underflow": ("Sigmoid", [X[np.abs(X) != 88]]),
    "Mish": ("Mish", [X], 18),
    "Gelu": ("Gelu", [X], 20),
    "Max": ("Max", PAIR),
    "Min": ("Min", PAIR),
    "Max of a constant": ("Max", [X], 17, [np.float32(0)]),
    "Min of a constant": ("Min", [X], 17, [np.float32(0)]),
    "Max of NaN": ("Max", [X], 17, [np.float32(NAN)]),
    "Clip": ("Clip", [X], 17, LIMITS),
    "PRelu": ("PRelu", [X], 17, [np.float32(-0.5)]),
    "Pow": ("Pow", PAIR),
    "Softmax": ("Softmax", [ROWS]),
    "LogSoftmax": ("LogSoftmax", [ROWS]),
    "Softmax, a small one": ("Softmax", [ROWS[:, -3:]]),
    "LogSoftmax of columns": ("LogSoftmax", [ROWS.T.copy()], 17, [], {"axis": 0}),
    "ReduceLogSumExp": ("ReduceLogSumExp", [ROWS], 17, [], {"axes": [1]}),
    "float16 Relu": ("Relu", [X[:-2].astype("float16")]),
    "float16 Tanh": ("Tanh", [np.float16([NAN, INF, -INF, 0, 1e-7, -15, 12])]),
}


@paths
@pytest.mark.parametrize("name", LIKE_ONNX_RUNTIME)
def test_as_onnx_runtime(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, feeds, opset, consts, attributes = (*LIKE_ONNX_RUNTIME[name], *(17, [], {})[len(LIKE_ONNX_RUNTIME[name]) - 2 :])
    made = model(op, feeds, opset, consts, **attributes)
    same(ours(made, feeds, path, monkeypatch), reference(made, feeds))


REDUCTIONS: dict[str, Callable[..., Array]] = {
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ArgMax": np.argmax,
    "ArgMin": np.argmin,
}


@paths
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions_as_numpy(op: str, axis: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ROWS if axis else ROWS.T.copy()
    made = model(op, [rows], 13, **({"axis": axis} if op.startswith("Arg") else {"axes": [axis]}), keepdims=0)
    same(ours(made, [rows], path, monkeypatch), REDUCTIONS[op](rows, axis=axis))


@pytest.mark.parametrize("path", ["rules", "narrow"])
@pytest.mark.parametrize("pads", [0, 1])
def test_a_pool_gives_nan_for_each_window_that_has_one(pads: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).standard_normal((1, 19, 9, 9)).astype("float32")
    image[0, :, 3, 4], image[0, 1], image[0, 2, 0, 0] = NAN, -INF, INF
    made = model("MaxPool", [image], kernel_shape=[3, 3], strides=[2, 2], pads=[pads] * 4)
    padded = np.pad(image, [(0, 0), (0, 0), (pads, pads), (pads, pads)], constant_values=-INF)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
    same(ours(made, [image], path, monkeypatch), windows.max((-1, -2)))


@paths
@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint8"])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_integers_divided_by_zero_do_not_end_the_process(
    op: str, dtype: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = int(np.iinfo(dtype).min)
    a = np.array([7, 7, 0, 9, least, least, 100, 9] * 5, "int64").astype(dtype)
    b = np.array([0, 2, 0, 3, -1 if least else 1, 1, 7, 0] * 5, "int64").astype(dtype)
    got = ours(model(op, [a, b]), [a, b], path, monkeypatch)
    with np.errstate(all="ignore"):
        want = np.fmod(a, b) if op == "Mod" else np.where(b == 0, 0, np.trunc(a / np.where(b == 0, 1, b)))
        want[:] = np.where((b == -1) & (a == least) & (least < 0), 0 if op == "Mod" else least, want) if least else want
    np.testing.assert_array_equal(got, want.astype(dtype))


def test_batch_normalization_with_a_variance_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype("float32")
    consts = [np.float32(v) for v in ([1, 1, 1], [1, 1, 1], [0, 1, 2], [0, 1e-30, 1])]
    made = model("BatchNormalization", [image], 17, consts, epsilon=0.0)
    same(ours(made, [image], "rules", monkeypatch), reference(made, [image]))
