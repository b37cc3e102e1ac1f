"""LSTM, GRU and RNN: right for all shapes and flags, one loop for any length, hidden when offloaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from tvm.runtime import vm

from tests.schedules.schedule_harness import TARGETS
from tests.support import onnx_models, operator_cases, recurrent_nets
from tests.support.bundle_secrets import assert_sealed
from tests.support.examples import examples
from tests.support.local_client import LocalClient, run_uncut
from tests.support.operator_cases import RIGHT, outcome
from tests.support.quantized_lstm import QuantizedLstm
from tests.support.recurrent_nets import GATES, RecurrentNet
from zmq_offload.compile import compile_model, list_cuts
from zmq_offload.compile.build import build, export
from zmq_offload.compile.flops import count
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.pipeline import fusing
from zmq_offload.compile.target import host_target
from zmq_offload.device.model import load
from zmq_offload.errors import InvalidArgument
from zmq_offload.schedules.recurrent.operators import RECURRENT

Array = np.ndarray[Any, Any]
Run = Callable[[dict[str, Array]], list[Array]]

KINDS = tuple(GATES)


def imported(net: RecurrentNet, folder: Path, symbolic: bool = False) -> Any:
    onnx.save(net.model(symbolic), folder / "m.onnx")
    shapes = {n: a.shape for n, a in net.fed().items()}
    return import_onnx(folder / "m.onnx", {"x": ("time", "batch", net.features)} if symbolic else shapes)


def compiled(net: RecurrentNet, folder: Path, target: tvm.target.Target, symbolic: bool = False) -> Run:
    model = imported(net, folder, symbolic)
    machine = vm.VirtualMachine(build(model.mod, target), tvm.cpu())
    names = [spec.name for spec in model.inputs]

    def run(fed: dict[str, Array]) -> list[Array]:
        result = machine["main"](*(tvm.runtime.tensor(fed[name]) for name in names))
        return [value.numpy() for value in list(result)[: len(net.outputs)]]

    return run


def by_onnxruntime(net: RecurrentNet, fed: dict[str, Array] | None = None, symbolic: bool = False) -> list[Array]:
    session = onnxruntime.InferenceSession(net.model(symbolic).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, net.fed() if fed is None else fed)


def assert_close(found: list[Array], right: list[Array], tolerance: float = 2e-5) -> None:
    assert len(found) == len(right)
    for ours, theirs in zip(found, right, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@st.composite
def nets(draw: st.DrawFn) -> RecurrentNet:
    kind = draw(st.sampled_from(KINDS))
    attributes: dict[str, Any] = {}
    if kind == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if kind == "LSTM" and draw(st.booleans()):
        attributes["input_forget"] = 1
    if draw(st.booleans()):
        attributes["clip"] = draw(st.sampled_from([0.05, 0.5, 3.0]))
    states = ["initial_h", "initial_c"] if kind == "LSTM" else ["initial_h"]
    return RecurrentNet(
        kind,
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 40)),
        draw(st.sampled_from(["forward", "reverse", "bidirectional"])),
        [name for name in ("bias", "lengths", *states) if draw(st.booleans())],
        draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
        attributes=attributes,
    )


@examples(8)
@given(net=nets(), target=st.sampled_from(TARGETS))
def test_shapes_and_flags_as_onnxruntime(net: RecurrentNet, target: tvm.target.Target, tmp_path: Path) -> None:
    assert_close(compiled(net, tmp_path, target)(net.fed()), by_onnxruntime(net))


@pytest.mark.parametrize(("kind", "after"), [("LSTM", 0), ("GRU", 0), ("GRU", 1), ("RNN", 0)])
def test_the_error_against_float64_is_that_of_onnxruntime(kind: str, after: int, tmp_path: Path) -> None:
    states = ["initial_h", "initial_c"] if kind == "LSTM" else ["initial_h"]
    net = RecurrentNet(
        kind, 60, 3, 7, 50, "bidirectional", ["bias", "lengths", *states],
        attributes={"linear_before_reset": 1} if after else {},
    )  # fmt: skip
    right = net.expected()
    ours, theirs = compiled(net, tmp_path, host_target())(net.fed()), by_onnxruntime(net)
    assert_close(ours, right, 2e-6)
    error, usual = (max(float(np.abs(a - b).max()) for a, b in zip(v, right, strict=True)) for v in (ours, theirs))
    assert error <= 2 * usual + 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_symbolic_length_and_batch(kind: str, tmp_path: Path) -> None:
    net = RecurrentNet(kind, direction="bidirectional", hidden=20, optional=["bias"])
    run = compiled(net, tmp_path, host_target(), symbolic=True)
    for time, batch in ((1, 1), (4, 2), (3, 13)):
        fed = {"x": onnx_models.random(time, batch, 3)}
        assert_close(run(fed), by_onnxruntime(net, fed, symbolic=True))


ACTIVATIONS: dict[str, dict[str, float]] = {
    "Affine": {"alpha": 0.5, "beta": 0.1},
    "Elu": {"alpha": 0.7},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "LeakyRelu": {"alpha": 0.2},
    "Relu": {},
    "ScaledTanh": {"alpha": 0.9, "beta": 0.8},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "Tanh": {},
    "ThresholdedRelu": {"alpha": 0.1},
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, tmp_path: Path) -> None:
    """Each takes its alpha and beta from the lists, in which functions without them have none."""
    constants = ACTIVATIONS[name]
    attributes: dict[str, Any] = {"activations": [name, "Tanh", "HardSigmoid", "Sigmoid", name, "LeakyRelu"]}
    own = {key: [constants[key]] if key in constants else [] for key in ("alpha", "beta")}
    attributes["activation_alpha"] = [*own["alpha"], 0.25, *own["alpha"], 0.05]
    attributes["activation_beta"] = [*own["beta"], 0.45, *own["beta"]]
    net = RecurrentNet("LSTM", direction="bidirectional", optional=["bias"], attributes=attributes)
    assert_close(compiled(net, tmp_path, host_target())(net.fed()), by_onnxruntime(net))


def test_default_constants_of_activations(tmp_path: Path) -> None:
    for name in ("HardSigmoid", "LeakyRelu", "Elu"):
        net = RecurrentNet("RNN", attributes={"activations": [name]})
        assert_close(compiled(net, tmp_path, host_target())(net.fed()), by_onnxruntime(net))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_reach_the_steps_after(kind: str, tmp_path: Path) -> None:
    """As in the float64 evaluation. (The activations of ONNX Runtime lose NaN.)"""
    net = RecurrentNet(kind, hidden=20, direction="bidirectional", optional=["bias"])
    fed = net.fed()
    fed["x"][1, 0, 2], fed["x"][2, 1, 1] = np.nan, np.inf
    with np.errstate(all="ignore"):
        right = net.expected({**net.arrays(), **fed})
    assert np.isnan(right[0]).any() and not np.isnan(right[0]).all()
    for ours, exact in zip(compiled(net, tmp_path, host_target())(fed), right, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("opset", [7, 9, 14, 22])
def test_old_and_new_opsets(opset: int, tmp_path: Path) -> None:
    net = RecurrentNet("LSTM", optional=["bias"])
    model = net.model()
    model.opset_import[0].version = opset
    onnx.save(model, tmp_path / "m.onnx")
    result = vm.VirtualMachine(build(import_onnx(tmp_path / "m.onnx", {}).mod, host_target()), tvm.cpu())["main"](
        tvm.runtime.tensor(net.fed()["x"])
    )
    assert_close([v.numpy() for v in list(result)[:3]], by_onnxruntime(net))


@pytest.mark.parametrize("kind", [*KINDS, "DynamicQuantizeLSTM"])
def test_the_imported_function_is_right_without_the_layout_pass(kind: str, tmp_path: Path) -> None:
    """Its loops over plain weights define what the vectors over packed weights compute."""
    optional = ["bias", "lengths", "initial_h"]
    net = RecurrentNet(kind.removeprefix("DynamicQuantize"), hidden=9, direction="bidirectional", optional=optional)
    lstm = QuantizedLstm(net, zero=3)
    onnx.save(net.model() if kind in KINDS else lstm.model(), tmp_path / "m.onnx")
    library = tvm.compile(import_onnx(tmp_path / "m.onnx", {}).mod, tvm.target.Target({"kind": "llvm"}))
    result = vm.VirtualMachine(library, tvm.cpu())["main"](tvm.runtime.tensor(net.fed()["x"]))
    found = [v.numpy() for v in list(result)[: len(net.outputs)]]
    assert_close(found, net.expected() if kind in KINDS else lstm.expected(), 1e-5 if kind in KINDS else 0.02)


def test_float16_is_computed_in_float32(tmp_path: Path) -> None:
    net = RecurrentNet("LSTM", hidden=24, optional=["bias", "initial_h"], dtype="float16")
    found = compiled(net, tmp_path, host_target())(net.fed())
    assert {a.dtype for a in found} == {np.dtype("float16")}
    assert_close(found, net.expected(), 2e-3)


@pytest.mark.parametrize(
    ("dtype", "per_column", "zero", "target"),
    [
        ("int8", True, 0, TARGETS[0]),
        ("uint8", False, 131, TARGETS[0]),
        ("int8", True, -9, TARGETS[0]),
        *(("int8", False, 5, target) for target in TARGETS[1:]),
    ],
    ids=str,
)
def test_an_lstm_with_weights_of_8_bits(
    dtype: str, per_column: bool, zero: int, target: tvm.target.Target, tmp_path: Path
) -> None:
    """ONNX Runtime takes no zero points of columns."""
    optional = ["bias", "initial_h", "initial_c", "lengths"]
    lstm = QuantizedLstm(
        RecurrentNet("LSTM", 9, 3, 6, 21, "bidirectional", optional, seed=zero & 3), dtype, per_column, zero
    )
    onnx.save(lstm.model(), tmp_path / "m.onnx")
    model = import_onnx(tmp_path / "m.onnx", {})
    machine = vm.VirtualMachine(build(model.mod, target), tvm.cpu())
    found = [v.numpy() for v in list(machine["main"](tvm.runtime.tensor(lstm.net.fed()["x"])))[:3]]
    right = lstm.expected()
    assert_close(found, right, 0.02)
    if not (per_column and zero):
        theirs = onnxruntime.InferenceSession(lstm.model().SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, lstm.net.fed()
        )
        error, usual = (max(float(np.abs(a - b).max()) for a, b in zip(v, right, strict=True)) for v in (found, theirs))
        assert error < 2 * usual


def test_weights_of_8_bits_stay_8_bits(tmp_path: Path) -> None:
    lstm = QuantizedLstm(RecurrentNet("LSTM", 2, 1, 8, 64))
    onnx.save(lstm.model(), tmp_path / "m.onnx")
    target = host_target()
    with target:
        fused = tvm.ir.transform.Sequential(fusing(target))(import_onnx(tmp_path / "m.onnx", {}).mod)
    (function,) = [f for f in fused.functions.values() if RECURRENT in (f.attrs or {})]
    assert str(function.params[1].dtype) == "int8"


@pytest.mark.operators
def test_onnx_node_tests_pass() -> None:
    found = [case for case in operator_cases.cases() if case.operators & GATES.keys() and "peepholes" not in case.name]
    assert len(found) >= 17
    for case in found:
        for constant in (False, True):
            result = outcome(case, constant)
            assert result.kind == RIGHT, f"{case.name}: {result}"


def test_peepholes_are_refused_by_name(tmp_path: Path) -> None:
    model = RecurrentNet("LSTM").model()
    model.graph.node[0].input.append("p")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 24), "float32"), "p"))
    onnx.save(model, tmp_path / "m.onnx")
    says = r"LSTM \(ai.onnx, node 'rec'\) with its input 8, 'p', the weights of peepholes; export the model without"
    with pytest.raises(InvalidArgument, match=says):
        import_onnx(tmp_path / "m.onnx", {})


@pytest.mark.parametrize(
    ("attributes", "dtype", "says"),
    [
        ({"activations": ["Sigmoid", "Tanh", "Swish"]}, "float32", "with activations=Swish; use one of Affine, Elu"),
        ({"activations": ["Sigmoid", "Tanh"]}, "float32", "with activations=Sigmoid,Tanh; it needs 3 of them"),
        ({"activations": ["Affine"] * 3}, "float32", "with activations=Affine; export the model with activation_alpha"),
        ({"hidden_size": 5}, "float32", "with hidden_size=5; its weights are for 8"),
        ({}, "float64", "node 'rec'\\): its datatype is float64; convert the model to float32"),
    ],
)
def test_what_is_refused_is_named(attributes: dict[str, Any], dtype: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=says) as raised:
        imported(RecurrentNet("LSTM", attributes=attributes, dtype=dtype), tmp_path)
    assert "LSTM" in str(raised.value) and "\n" not in str(raised.value)


def test_code_does_not_grow_with_the_sequence(tmp_path: Path) -> None:
    counted, sizes = [], []
    for time in (10, 10_000):
        net = RecurrentNet("LSTM", time, 1, 4, 16, "bidirectional", ["bias"])
        mod, target = imported(net, tmp_path).mod, host_target()
        with target:
            fused = tvm.ir.transform.Sequential(fusing(target))(mod)
        (function,) = [f for f in fused.functions.values() if RECURRENT in (f.attrs or {})]
        counted.append(len(re.findall(r"^ *for ", function.script(), re.M)))
        export(build(mod, target), tmp_path / f"{time}.so", target)
        sizes.append((tmp_path / f"{time}.so").stat().st_size)
    assert 5 < counted[0] == counted[1] < 60
    assert abs(sizes[0] - sizes[1]) < 8192


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, _ = recurrent_nets.tagger(tmp_path_factory.mktemp("tagger") / "m.onnx")
    return path


def test_cuts_count_the_steps(tagger: Path) -> None:
    shares = {cut.name: cut.share for cut in list_cuts(tagger)}
    dense, lstm, gru = 7 * 8 * 12, 7 * 2 * 4 * 16 * (12 + 16), 7 * 3 * 16 * (32 + 16)
    assert shares["features"] == pytest.approx((lstm + gru) / (dense + lstm + gru))
    assert shares["joined"] == pytest.approx(gru / (dense + lstm + gru))


def test_flops_count_the_steps(tmp_path: Path) -> None:
    for symbolic, expected in ((False, (2 * 5 * 2 * 3 * 64, 0)), (True, None)):
        target = host_target()
        with target:
            fused = tvm.ir.transform.Sequential(fusing(target))(imported(RecurrentNet("GRU"), tmp_path, symbolic).mod)
        (function,) = [f for f in fused.functions.values() if RECURRENT in (f.attrs or {})]
        assert count(function) == expected


@pytest.mark.parametrize("cut", ["features", "joined"])
def test_a_split_net_is_sealed_and_computes_the_same(tagger: Path, cut: str, tmp_path: Path) -> None:
    compiled_net = compile_model(tagger, cut=cut, name="tagger", output=tmp_path)
    assert_sealed(tagger, compiled_net, cut)
    x = onnx_models.random(7, 1, 8)
    found = load(compiled_net.device, client=LocalClient(compiled_net.subgraphs[0].parent.parent))(x)
    (right,) = run_uncut(tagger, {}, [x])
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)
