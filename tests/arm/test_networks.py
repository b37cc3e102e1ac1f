"""Whole networks of PP-OCR, compiled for a board and run on an emulated one, against ONNX Runtime here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.arm.root import Root
from tests.support import onnx_models
from zmq_offload.compile import compile_uncut

pytestmark = pytest.mark.arm

RUN = """
import sys
import numpy as np
from zmq_offload.runtime.machine import Machine, load_library
library, given, results = sys.argv[1:]
np.savez(results, *Machine(load_library(library)).run([np.load(given)]))
"""


@pytest.mark.parametrize(
    ("file", "shape"),
    [("ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192)), ("ch_PP-OCRv4_det_infer.onnx", (1, 3, 160, 160))],
    ids=["classifier", "detector"],
)
def test_a_network_computes_what_onnxruntime_does(
    arm64: Root, file: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    package = pytest.importorskip("rapidocr_onnxruntime", reason="its package has PP-OCR's networks")
    model = Path(package.__file__).parent / "models" / file
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name, x = session.get_inputs()[0].name, onnx_models.random(*shape)
    library, given, results = (tmp_path / file for file in ("m.so", "x.npy", "results.npz"))
    compile_uncut(model, library, inputs={name: shape}, target="raspberry-pi-5")
    np.save(given, x)
    arm64.run(["python3", "-c", RUN, library, given, results], cpu="cortex-a76")
    with np.load(results) as found:
        for array, expected in zip(found.values(), session.run(None, {name: x}), strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5)
