"""Fixtures: small networks, compiled once for each test process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zmq_offload.artifacts.repository import DESCRIPTION, LIBRARY

if TYPE_CHECKING:
    from zmq_offload.compile import Compiled

# Compiler and ONNX are imported in the fixtures, so that tests without them start quickly.


@pytest.fixture(scope="session")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support import onnx_models

    return onnx_models.convnet(tmp_path_factory.mktemp("models") / "convnet.onnx")


@pytest.fixture(scope="session")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support import onnx_models

    return onnx_models.mlp(tmp_path_factory.mktemp("models") / "mlp.onnx")


@pytest.fixture(scope="session")
def diamond(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support import onnx_models

    return onnx_models.diamond(tmp_path_factory.mktemp("models") / "diamond.onnx")


@pytest.fixture(scope="session")
def compiled_mlp(mlp: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The MLP with a batch of 2, offloaded from h2 to h4 as "mlp". Do not change it; take a copy with `fresh_mlp`."""
    from zmq_offload.compile import compile_model

    output = tmp_path_factory.mktemp("mlp")
    return compile_model(mlp, inputs={"x": (2, 8)}, cut=["h2"], until=["h4"], name="mlp", output=output)


@pytest.fixture(scope="session")
def compiled_convnet(convnet: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The convolutional net for an image of 12 x 12, offloaded from "features" as "net", and checked. Do not change."""
    from zmq_offload.compile import compile_model

    output = tmp_path_factory.mktemp("net")
    return compile_model(convnet, inputs={"x": (1, 3, 12, 12)}, cut=["features"], name="net", output=output, check=True)


@pytest.fixture(scope="session")
def compiled_wide(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """8 MB of weights on the device, 8 MB offloaded as "wide" (from h2), with a fallback on the device."""
    import onnx

    from tests.support import onnx_models
    from zmq_offload.compile import compile_model

    output = tmp_path_factory.mktemp("wide")
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w1"], ["h1"]),
        onnx.helper.make_node("Relu", ["h1"], ["h2"]),
        onnx.helper.make_node("MatMul", ["h2", "w2"], ["y"]),
    ]
    weights = {"w1": onnx_models.random(1448, 1448, seed=1), "w2": onnx_models.random(1448, 1448, seed=2)}
    path = onnx_models.write(output / "m.onnx", nodes, {"x": [1, 1448]}, {"y": [1, 1448]}, weights)
    return compile_model(path, cut=["h2"], name="wide", output=output, with_fallback=True)


@pytest.fixture
def fresh_mlp(compiled_mlp: Compiled, tmp_path: Path) -> Path:
    """A copy of `compiled_mlp` that the test may change: a folder with `device` and `repository`."""
    return Path(shutil.copytree(compiled_mlp.device.parent, tmp_path / "dist"))


def copies(source: Path, root: Path, count: int) -> Path:
    """A repository with so many copies of a version, each version 1 of a model of its own: m0, m1, ..."""
    for number in range(count):
        place = root / f"m{number}" / "1"
        place.mkdir(parents=True)
        shutil.copy(source / LIBRARY, place)
        described = json.loads((source / DESCRIPTION).read_text()) | {"name": f"m{number}"}
        (place / DESCRIPTION).write_text(json.dumps(described))
    return root
