"""The device bundle holds nothing of the offloaded region: no weight, no operator, no tensor's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.bundle_secrets import assert_sealed, contents
from zmq_offload.artifacts.manifest import LIBRARY, MANIFEST
from zmq_offload.compile import Compiled, compile_model


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
