"""The device bundle holds nothing of the offloaded region: no weight, no operator, no tensor's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.support import onnx_models
from tests.support.bundle_secrets import assert_sealed, contents, four_byte_values, share_found
from zmq_offload.artifacts.manifest import LIBRARY, MANIFEST
from zmq_offload.artifacts.repository import LIBRARY as SUBGRAPH
from zmq_offload.compile import Compiled, Cut, compile_model
from zmq_offload.runtime.machine import Machine, load_library


def test_no_offloaded_weight_is_in_the_device_bundle(convnet: Path, compiled_convnet: Compiled) -> None:
    assert_sealed(convnet, compiled_convnet, "features")


def test_no_offloaded_operator_or_tensor_name_is_in_the_device_bundle(compiled_convnet: Compiled) -> None:
    device, subgraph = contents(compiled_convnet.device).lower(), contents(compiled_convnet.subgraphs[0]).lower()
    assert b"conv2d" in device and b"conv2d" not in subgraph  # libraries have the names of operators
    for operator in (b"tanh", b"softmax", b"matmul", b"dense", b"adaptive_avg_pool", b"mean", b"permute"):
        assert operator not in device
    assert b"softmax" in subgraph and b"dense" in subgraph
    assert b"inner_" not in device
    assert b"const_0" not in device


def test_the_bundle_has_two_files_and_the_symbol_reveals_nothing(compiled_convnet: Compiled, convnet: Path) -> None:
    assert sorted(p.name for p in compiled_convnet.device.iterdir()) == [LIBRARY, MANIFEST]
    (region,) = compiled_convnet.manifest.offloaded
    prefix, _, digest = region.symbol.rpartition("_")
    assert prefix == "zmq_offload" and len(digest) == 24 and int(digest, 16)


def test_symbols_are_the_same_in_every_build_and_differ_between_models(mlp: Path, tmp_path: Path) -> None:
    def symbol(folder: str, **changed: Any) -> str:
        options = {"inputs": {"x": (2, 8)}, "cut": ["h2"], "name": "mlp", "output": tmp_path / folder} | changed
        return compile_model(mlp, **options).manifest.offloaded[0].symbol

    first = symbol("a")
    assert symbol("b") == first
    assert len({first, symbol("c", name="other"), symbol("d", cut="h1"), symbol("e", inputs={"x": (3, 8)})}) == 4


def test_a_bundle_with_several_cuts_holds_nothing_behind_the_deepest(convnet: Path, tmp_path: Path) -> None:
    cuts = ["relu1", Cut("relu1", wire="int8"), ["conv2", "relu1"], Cut("features", wire="float16")]
    compiled = compile_model(convnet, inputs={"x": (1, 3, 12, 12)}, cuts=cuts, name="net", output=tmp_path)
    assert_sealed(convnet, compiled, "features", first="relu1")
    device = contents(compiled.device).lower()
    for operator in (b"tanh", b"softmax", b"dense", b"adaptive_avg_pool", b"permute", b"inner_", b"const_0"):
        assert operator not in device
    assert sorted(p.name for p in compiled.device.iterdir()) == [LIBRARY, MANIFEST]
    assert compiled.manifest.sealed and not compiled.manifest.local
    with pytest.raises(Exception, match="whole"):
        Machine(load_library(compiled.subgraphs[0] / SUBGRAPH), entry="whole")


def test_weights_between_the_cut_and_the_end_of_every_split_are_sealed(convnet: Path, tmp_path: Path) -> None:
    """The device computes what is around: it holds the union of what the splits leave to it, and not what all have
    offloaded."""
    cuts = [
        Cut("relu1", until="features"),
        Cut("conv1", until=["conv2", "relu1"]),
        Cut("relu1", until="conv2", wire="int8"),
    ]
    compiled = compile_model(convnet, inputs={"x": (1, 3, 12, 12)}, cuts=cuts, name="net", output=tmp_path)
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(convnet).graph.initializer}
    device, worker = (four_byte_values(contents(f)) for f in (compiled.device, compiled.subgraphs[0]))
    found = {name: (share_found(weights[name], device), share_found(weights[name], worker)) for name in weights}
    assert found["w2"][0] < 0.25 and found["w2"][1] > 0.75
    for name in ("w1", "w3"):
        assert found[name][0] > 0.75 and found[name][1] < 0.25


def test_the_device_bundle_is_the_same_whatever_is_behind_the_deepest_cut(tmp_path: Path) -> None:
    """Two models whose offloaded parts differ in weights and structure have the same device bundle."""
    libraries = []
    for number, activation in enumerate(("Tanh", "Sigmoid")):
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["h1"]),
            helper.make_node("Relu", ["h1"], ["h2"]),
            helper.make_node("MatMul", ["h2", "w2"], ["h3"]),
            *([helper.make_node("MatMul", ["h3", "w3"], ["more"])] if number else []),
            helper.make_node(activation, ["more" if number else "h3"], ["secret"]),
            helper.make_node("MatMul", ["secret", "w3"], ["y"]),
        ]
        weights = {f"w{i}": onnx_models.random(16, 16, seed=i + 7 * number * (i == 3)) for i in (1, 2, 3)}
        file = onnx_models.write(tmp_path / f"{number}.onnx", nodes, {"x": [2, 16]}, {"y": [2, 16]}, weights)
        options: dict[str, Any] = {"cuts": ["x", "h2", "h3"], "name": "m", "output": tmp_path / str(number)}
        compiled = compile_model(file, **options)
        library = (compiled.device / LIBRARY).read_bytes()
        for at, region in enumerate(compiled.manifest.offloaded):
            library = library.replace(region.symbol.encode(), b"s%027d" % at)
        libraries.append(np.frombuffer(library, "u1"))
    a, b = libraries
    assert len(a) == len(b) and (a != b).sum() < 200  # digests of the regions and their hashes
