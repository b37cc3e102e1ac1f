"""The device bundle has nothing of the offloaded part: no weight, no operator, no tensor's name."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from zmq_offload.byoc.manifest import LIBRARY, MANIFEST
from zmq_offload.compile import Compiled, compile_model
from zmq_offload.compile.importer import read_onnx, simplify


def contents(folder: Path) -> bytes:
    return b"\0".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def weights_of(path: Path, nodes_behind: set[str]) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """Weights of the offloaded nodes (by output name) and of the others, each as it may lie in memory: as it is and
    transposed. Weights on both sides are neither."""
    model = simplify(read_onnx(path))
    values: dict[str, np.ndarray[Any, Any]] = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    # Weights of few different values (0, 1, epsilon) may stand in any library.
    telling = {n for n, v in values.items() if v.nbytes >= 16 and len(np.unique(v)) >= 4}
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for node in model.graph.node:
        used[node.output[0] in nodes_behind].update(node.input)

    def forms(names: set[str]) -> list[list[bytes]]:
        return [list(dict.fromkeys((values[n].tobytes(), values[n].T.tobytes()))) for n in sorted(names)]

    return forms(telling & used[True] - used[False]), forms(telling & used[False] - used[True])


def behind(model: onnx.ModelProto, cut: str) -> set[str]:
    reached = {cut}
    for node in model.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    return reached - {cut}


def check_secrets(path: Path, compiled: Compiled, cut: str) -> None:
    device, subgraph = contents(compiled.device), contents(compiled.subgraphs[0])
    hidden, own = weights_of(path, behind(simplify(read_onnx(path)), cut))
    assert hidden and own
    for weight in itertools.chain(*hidden):
        assert weight not in device
        assert weight[:16] not in device
        assert weight[-16:] not in device
    # The search means something: each side's own weights are found.
    assert all(any(form in device for form in weight) for weight in own)
    assert all(any(form in subgraph for form in weight) for weight in hidden)
    assert not any(form in subgraph for form in itertools.chain(*own))


@pytest.fixture(scope="module")
def cut_convnet(convnet: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_model(
        convnet,
        inputs={"x": (1, 3, 12, 12)},
        cut=["features"],
        name="head",
        output=tmp_path_factory.mktemp("net"),
    )


def test_no_offloaded_weight_is_in_the_device_bundle(convnet: Path, cut_convnet: Compiled) -> None:
    check_secrets(convnet, cut_convnet, "features")


def test_no_offloaded_operator_or_tensor_name_is_in_the_device_bundle(cut_convnet: Compiled) -> None:
    device, subgraph = contents(cut_convnet.device).lower(), contents(cut_convnet.subgraphs[0]).lower()
    assert b"conv2d" in device and b"conv2d" not in subgraph  # operators' names do stand in libraries
    for operator in (b"tanh", b"softmax", b"matmul", b"adaptive_avg_pool", b"mean", b"permute"):
        assert operator not in device
    assert b"softmax" in subgraph and b"matmul" in subgraph
    assert b"inner_" not in device
    assert b"const_0" not in device


def test_the_bundle_has_two_files_and_the_symbol_says_nothing(cut_convnet: Compiled, convnet: Path) -> None:
    assert sorted(p.name for p in cut_convnet.device.iterdir()) == [LIBRARY, MANIFEST]
    (part,) = cut_convnet.manifest.offloaded
    prefix, _, digest = part.symbol.rpartition("_")
    assert prefix == "zmq_offload" and len(digest) == 24 and int(digest, 16)


def test_symbols_are_the_same_in_every_build_and_differ_between_models(mlp: Path, tmp_path: Path) -> None:
    def symbol(folder: str, **changed: Any) -> str:
        options = {"inputs": {"x": (2, 8)}, "cut": ["h2"], "name": "mlp", "output": tmp_path / folder} | changed
        return compile_model(mlp, **options).manifest.offloaded[0].symbol

    first = symbol("a")
    assert symbol("b") == first
    assert len({first, symbol("c", name="other"), symbol("d", cut=["h1"]), symbol("e", inputs={"x": (3, 8)})}) == 4
