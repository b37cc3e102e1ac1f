"""Windows, Fourier transforms and attention beyond ONNX's own tests: long, of symbolic length, with constants."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm.runtime import vm

from tests.support.operator_cases import REFUSED, RIGHT, floats, outcome, run
from zmq_offload.compile.build import build
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.target import host_target

Array = np.ndarray[Any, Any]
N = helper.make_node

WINDOWS = ["HannWindow", "HammingWindow", "BlackmanWindow"]


@pytest.mark.parametrize("periodic", [0, 1])
def test_windows_are_constants(periodic: int) -> None:
    nodes = [N(name, ["n"], [name], periodic=periodic) for name in WINDOWS]
    nodes += [N("Concat", WINDOWS, ["all"], axis=0), N("Mul", ["x", "all"], ["y"])]
    found = outcome(run(nodes, floats(30), {"n": np.int64(10)}), constant=False)
    assert found.kind == RIGHT, found.detail


@pytest.mark.parametrize("shape", [(1, 300, 1), (2, 300)])
def test_a_mel_spectrogram(shape: tuple[int, ...]) -> None:
    """As exporters write it: a transform of frames, its power, a product with the mel weights."""
    nodes = [
        N("HannWindow", ["n"], ["w"]),
        N("STFT", ["x", "step", "w"], ["f"], onesided=1),
        N("ReduceSumSquare", ["f"], ["p"], axes=[3], keepdims=0),
        N("MelWeightMatrix", ["bins", "n", "rate", "low", "high"], ["m"]),
        N("MatMul", ["p", "m"], ["y"]),
    ]
    numbers = {"n": 64, "step": 16, "bins": 8, "rate": 16000}
    constants = {name: np.int64(value) for name, value in numbers.items()}
    constants |= {"low": np.float32(0), "high": np.float32(8000)}
    found = outcome(run(nodes, floats(*shape), constants), constant=False)
    assert found.kind == RIGHT, found.detail


def test_shapes_that_onnx_infers_wrongly_are_not_believed() -> None:
    """Without `onesided` frames have half of the spectrum; ONNX infers the whole."""
    nodes = [
        N("STFT", ["x", "step", "", "length"], ["f"]),
        N("ReduceSumSquare", ["f"], ["p"], axes=[3], keepdims=0),
        N("Sqrt", ["p"], ["y"]),
    ]
    found = outcome(run(nodes, floats(2, 64), {"step": np.int64(16), "length": np.int64(32)}), constant=False)
    assert found.kind == RIGHT, found.detail


def test_a_long_transform_is_done_in_steps() -> None:
    x = floats(1, 2400, 1)
    case = run([N("DFT", ["x"], ["y"], axis=1, onesided=1)], x, {})
    right = np.fft.rfft(x[..., 0].astype("f8"))
    # ONNX Runtime's own result is off by 0.01.
    exact = np.stack([right.real, right.imag], -1).astype("f4")
    found = outcome(dataclasses.replace(case, outputs=(exact,), atol=1e-3), constant=False)
    assert found.kind == RIGHT, found.detail


def test_a_transform_of_a_large_prime_length_is_refused_with_what_to_do() -> None:
    found = outcome(run([N("DFT", ["x"], ["y"], "f", axis=1)], floats(1, 1031, 1), {}), constant=False)
    assert found.kind == REFUSED
    assert found.detail.endswith("(ai.onnx, node 'f'): its length 1031 is a prime number above 1024; pad the signal")


def computed(
    path: Path, nodes: list[onnx.NodeProto], shape: list[int | str], x: Array, opset: int, **weights: Array
) -> Array:
    """Compute the output `y` of nodes whose input has symbolic extents."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    machine = vm.VirtualMachine(build(import_onnx(path, {"x": shape}).mod, host_target()), tvm.cpu())
    result = machine["main"](tvm.runtime.tensor(x))
    first = result if isinstance(result, tvm.runtime.Tensor) else result[0]
    return np.asarray(first.numpy())


def test_frames_of_a_signal_of_symbolic_length(tmp_path: Path) -> None:
    nodes = [N("STFT", ["x", "step", "w"], ["y"])]
    window = np.hanning(32).astype("f4")
    x = floats(2, 100, 1)
    found = computed(tmp_path / "m.onnx", nodes, [2, "L", 1], x, 17, step=np.int64(8), w=window)
    frames = np.stack([x[:, i : i + 32, 0] * window for i in range(0, 69, 8)], 1)
    right = np.fft.rfft(frames)
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], right, atol=1e-4)


def test_attention_of_a_symbolic_sequence(tmp_path: Path) -> None:
    nodes = [N("Attention", ["x", "x", "x"], ["y"], q_num_heads=2, kv_num_heads=2, is_causal=1)]
    x = floats(3, 7, 8)
    found = computed(tmp_path / "m.onnx", nodes, [3, "S", 8], x, 23)
    heads = x.reshape(3, 7, 2, 4).transpose(0, 2, 1, 3).astype("f8")
    scores = heads @ heads.transpose(0, 1, 3, 2) / 2
    scores = np.where(np.tri(7) > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    right = weights / weights.sum(-1, keepdims=True) @ heads
    np.testing.assert_allclose(found, right.transpose(0, 2, 1, 3).reshape(3, 7, 8), rtol=1e-4, atol=1e-5)
