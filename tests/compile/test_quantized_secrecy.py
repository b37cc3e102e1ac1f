"""The device bundle of a quantized model holds none of the offloaded region's weights of 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support import quantized_models
from tests.support.bundle_secrets import contents
from tests.support.quantized_lstm import QuantizedLstm
from tests.support.quantized_models import Array
from tests.support.recurrent_nets import RecurrentNet
from zmq_offload.compile import Compiled, compile_model

RUN = 16
"""Neighboring values of a column. Kernels keep them together or interleave few of them."""


def pieces(weight: Array) -> list[bytes]:
    """Runs of a weight (depth, columns) as kernels pack it: one row, one column, and groups of 2 and 4 of the depth."""
    found = [weight[0, :RUN], weight[:RUN, 0]]
    found += [weight[:g, :RUN].T for g in (2, 4)]
    return [np.ascontiguousarray(part).tobytes() for part in found]


def assert_sealed(compiled: Compiled, hidden: list[Array], own: list[Array]) -> None:
    device, worker = contents(compiled.device), contents(compiled.subgraphs[0])
    for weight in hidden:
        assert not any(piece in device for piece in pieces(weight))
        assert any(piece in worker for piece in pieces(weight))  # the search finds what is there
    for weight in own:
        assert any(piece in device for piece in pieces(weight))


def test_a_dynamically_quantized_feed_forward_part(tmp_path: Path) -> None:
    file, cut = quantized_models.dynamic_net(tmp_path / "m.onnx")
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(file).graph.initializer}
    compiled = compile_model(file, cut=cut, name="m", output=tmp_path / "dist")
    assert_sealed(compiled, [weights["down.w"]], [weights["up.w"]])


def test_a_dynamically_quantized_lstm(tmp_path: Path) -> None:
    model = QuantizedLstm(RecurrentNet("LSTM", features=16, hidden=32)).model()
    model.graph.node[0].input[0] = "features"
    model.graph.node.insert(0, helper.make_node("Tanh", ["x"], ["features"], name="before"))
    onnx.save(model, tmp_path / "m.onnx")
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    compiled = compile_model(tmp_path / "m.onnx", cut="features", name="m", output=tmp_path / "dist")
    assert_sealed(compiled, [weights["w"][0], weights["r"][0]], [])
