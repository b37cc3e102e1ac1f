"""The device bundle of a quantized model holds none of the offloaded region's weights of 8 bits."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from tests.support import quantized_models
from tests.support.bundle_secrets import assert_runs_sealed
from tests.support.quantized_lstm import QuantizedLstm
from tests.support.recurrent_nets import RecurrentNet
from zmq_offload.compile import compile_model


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
