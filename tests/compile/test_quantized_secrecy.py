"""The device bundle of a quantized model holds none of the offloaded region's weights of 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from tests.support import quantized_models
from tests.support.adaptive_bundles import run_splits
from tests.support.bundle_secrets import assert_runs_sealed, contents
from tests.support.local_client import LocalClient
from tests.support.quantized_lstm import QuantizedLstm
from tests.support.recurrent_nets import RecurrentNet
from zmq_offload.artifacts.manifest import LIBRARY
from zmq_offload.compile import compile_model
from zmq_offload.device.model import load


def test_a_dynamically_quantized_feed_forward_part(tmp_path: Path) -> None:
    file, cut = quantized_models.dynamic_net(tmp_path / "m.onnx")
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(file).graph.initializer}
    compiled = compile_model(file, cut=cut, name="m", output=tmp_path / "dist")
    assert_runs_sealed(compiled, [weights["down.w"]], [weights["up.w"]])


def test_a_dynamically_quantized_lstm(tmp_path: Path) -> None:
    model = QuantizedLstm(RecurrentNet("LSTM", features=16, hidden=32)).model()
    model.graph.node[0].input[0] = "features"
    model.graph.node.insert(0, helper.make_node("Tanh", ["x"], ["features"], name="before"))
    onnx.save(model, tmp_path / "m.onnx")
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    compiled = compile_model(tmp_path / "m.onnx", cut="features", name="m", output=tmp_path / "dist")
    assert_runs_sealed(compiled, [weights["w"][0], weights["r"][0]], [])


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_block_of_a_quantized_transformer(dynamic: bool, tmp_path: Path) -> None:
    """Two models whose second blocks differ in weights, scales and structure have the same device bundle."""
    bundles, x = [], np.random.default_rng(0).standard_normal((1, 8, 16)).astype("f4")
    for number, activation in enumerate(("Relu", "Sigmoid")):
        folder = tmp_path / str(number)
        folder.mkdir()
        file, cut, offloaded = quantized_models.transformer(folder / "m.onnx", dynamic, 10 + number, activation)
        compiled = compile_model(file, cut=cut, name="m", output=folder / "dist", check=True)
        assert [spec.datatype for spec in compiled.models[0].inputs] == ["FP32" if dynamic else "UINT8"]
        weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(file).graph.initializer}
        bytes_ = {name: w for name, w in weights.items() if w.dtype == np.int8 and w.ndim == 2}
        assert_runs_sealed(
            compiled, [bytes_[n] for n in bytes_ if n in offloaded], [bytes_[n] for n in bytes_.keys() - offloaded]
        )
        device = contents(compiled.device)
        for name in offloaded:
            if weights[name].dtype == np.float32 and weights[name].size >= 8:
                assert weights[name].tobytes()[:16] not in device, name
        assert b"hidden_block" not in device
        loaded = load(compiled.device, client=LocalClient(folder / "dist" / "repository"))
        right = onnxruntime.InferenceSession(str(file)).run(None, {"x": x})[0]
        np.testing.assert_allclose(loaded(x), right, rtol=0, atol=0.05 * np.abs(right).max())
        bundles.append(np.frombuffer((compiled.device / LIBRARY).read_bytes(), "u1"))
    a, b = bundles
    # The symbol is a digest of the region, and the table of symbols has its hash.
    assert len(a) == len(b) and (a != b).sum() < 200


def test_several_cuts_of_a_quantized_transformer(tmp_path: Path) -> None:
    """The device holds the first block, and nothing of the second, which all splits offload."""
    file, deepest, offloaded = quantized_models.transformer(tmp_path / "m.onnx", dynamic=False)
    x = np.random.default_rng(0).standard_normal((1, 8, 16)).astype("f4")
    compiled = compile_model(file, cuts=["x", deepest], name="m", output=tmp_path / "dist")
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(file).graph.initializer}
    bytes_ = {name: w for name, w in weights.items() if w.dtype == np.int8 and w.ndim == 2}
    assert_runs_sealed(
        compiled, [bytes_[n] for n in bytes_ if n in offloaded], [bytes_[n] for n in bytes_.keys() - offloaded]
    )
    assert b"hidden_block" not in contents(compiled.device)
    right = onnxruntime.InferenceSession(str(file)).run(None, {"x": x})[0]
    for found in run_splits(compiled, [x]).values():
        np.testing.assert_allclose(found[0], right, rtol=0, atol=0.05 * np.abs(right).max())
