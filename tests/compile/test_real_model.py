"""The network of the demo on a small image: PP-OCRv4 text detection, from the package rapidocr-onnxruntime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.support.bundle_secrets import assert_sealed
from tests.support.local_client import LocalClient
from zmq_offload.compile import compile_model, list_cuts
from zmq_offload.device.model import load

SHAPE = {"x": (1, 3, 64, 64)}
CUT = "p2o.Concat.1"


@pytest.fixture(scope="module")
def network() -> Path:
    # Importing the package would import OpenCV.
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        pytest.skip("rapidocr-onnxruntime is not installed")
    return Path(spec.origin).parent / "models" / "ch_PP-OCRv4_det_infer.onnx"


def test_it_is_cut_before_its_head_and_computes_the_same(network: Path, tmp_path: Path) -> None:
    compiled = compile_model(network, inputs=SHAPE, cut=[CUT], name="ocr", output=tmp_path)
    x = np.random.default_rng(0).random((1, 3, 64, 64), dtype="f4")
    found = load(compiled.device, client=LocalClient(tmp_path / "repository"))(x)
    assert isinstance(found, np.ndarray)
    (reference,) = onnxruntime.InferenceSession(network).run(None, {"x": x})
    np.testing.assert_allclose(found, reference, atol=1e-4, rtol=0)
    assert_sealed(network, compiled, CUT)


def test_its_cuts_are_listed(network: Path) -> None:
    cuts = {c.name: c for c in list_cuts(network, inputs=SHAPE)}
    assert cuts[CUT].tensor.shape == (1, 96, 16, 16)
    assert 0.2 < cuts[CUT].share < 0.3
    shares = [c.share for c in cuts.values()]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True)
