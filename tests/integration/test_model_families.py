"""One model of each family, split and served by a broker and a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import zmq_offload
from tests.support import quantized_models, recurrent_nets, tflite_models
from zmq_offload.compile import compile_model
from zmq_offload.testing import Fabric


@dataclass(frozen=True)
class Family:
    """How a model of a family is written (the file and a tensor to cut at), its input, and how exact it is."""

    write: Callable[[Path], tuple[Path, str]]
    shape: tuple[int, ...]
    tolerance: float
    sent: str
    """Datatype of the tensor that crosses the wire."""


FAMILIES = {
    "int8_qdq": Family(quantized_models.conv_net, (1, 3, 16, 16), 1e-5, "UINT8"),
    "recurrent": Family(recurrent_nets.tagger, (7, 1, 8), 1e-5, "FP32"),
    "int8_dynamic": Family(quantized_models.dynamic_net, (1, 12, 32), 1e-5, "FP32"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_split_and_served(name: str, tmp_path: Path) -> None:
    import onnxruntime

    family = FAMILIES[name]
    file, cut = family.write(tmp_path / "model.onnx")
    compiled = compile_model(file, cut=cut, name=name, output=tmp_path / "dist", check=True)
    assert [spec.datatype for spec in compiled.models[0].inputs] == [family.sent]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    with (
        Fabric(tmp_path / "dist" / "repository") as fabric,
        zmq_offload.load(compiled.device, fabric.frontend) as model,
    ):
        for seed in range(3):
            x = np.random.default_rng(seed).standard_normal(family.shape).astype("f4")
            (right,) = session.run(None, {session.get_inputs()[0].name: x})
            np.testing.assert_allclose(model(x), right, rtol=0, atol=family.tolerance * np.abs(right).max())


def test_a_tflite_file_is_split_and_served(tmp_path: Path) -> None:
    file = tflite_models.network(tmp_path / "model.tflite")
    compiled = compile_model(file, cut="conv", name="tflite", output=tmp_path / "dist")
    with (
        Fabric(tmp_path / "dist" / "repository") as fabric,
        zmq_offload.load(compiled.device, fabric.frontend) as model,
    ):
        x = np.random.default_rng(0).standard_normal((1, 8, 8, 3)).astype("f4")
        np.testing.assert_allclose(model(x), tflite_models.computed(x), atol=1e-5)
