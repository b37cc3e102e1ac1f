"""One model of each family, split and served by a broker and a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import zmq_offload
from tests.support import family_nets, quantized_models, recurrent_nets, tflite_models
from tests.support.family_nets import Case
from zmq_offload.compile import Compiled, compile_model
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


Built = dict[str, tuple[Case, Compiled | Exception]]


def _built(name: str, folder: Path) -> tuple[Case, Compiled | Exception]:
    case = family_nets.CASES[name](folder / f"{name}.onnx")
    try:
        return case, compile_model(
            case.file, cut=case.cut, name=name, inputs=case.inputs, output=folder / name, repository=folder / "all"
        )
    except Exception as error:  # the test of this family fails, and not those of all
        return case, error


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Built, str]]:
    """A net of each family, split, and one fabric that serves them all."""
    folder = tmp_path_factory.mktemp("families")
    built = {name: _built(name, folder) for name in family_nets.CASES}
    with Fabric(folder / "all") as fabric:
        yield built, fabric.frontend


@pytest.mark.parametrize("name", family_nets.CASES)
def test_a_net_as_exporters_write_it_is_split_and_served(name: str, served: tuple[Built, str]) -> None:
    case, compiled = served[0][name]
    if isinstance(compiled, Exception):
        raise compiled
    _check(case, compiled, served[1])


@pytest.mark.operators
def test_a_decoder_with_a_cache_of_any_length_is_split_and_served(tmp_path: Path) -> None:
    """Its first block runs on the device, its second on the worker, each with its keys and values."""
    case = family_nets.decoder_with_a_cache(tmp_path / "model.onnx")
    compiled = compile_model(
        case.file, cut=case.cut, name="decoder", inputs=case.inputs, output=tmp_path / "dist", check=True
    )
    with Fabric(tmp_path / "dist" / "repository") as fabric:
        _check(case, compiled, fabric.frontend)


def _check(case: Case, compiled: Compiled, frontend: str) -> None:
    """Run the samples, and compare the results with ONNX Runtime's."""
    import onnxruntime

    assert tuple(spec.datatype for spec in compiled.models[0].inputs) == case.sent
    session = onnxruntime.InferenceSession(str(case.file), providers=["CPUExecutionProvider"])
    with zmq_offload.load(compiled.device, frontend) as model:
        for sample in case.samples:
            right = session.run(None, dict(sample))
            results = model(**sample)
            results = results if isinstance(results, tuple) else (results,)
            for result, expected in zip(results, right, strict=True):
                np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max(initial=0))
