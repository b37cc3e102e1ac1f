"""The demo's network: PP-OCRv4 text detection, as the PyPI package rapidocr-onnxruntime ships it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from zmq_offload.errors import FailedPrecondition

CUT = ("conv2d_469.tmp_0", "conv2d_470.tmp_0", "conv2d_471.tmp_0", "conv2d_472.tmp_0")
"""The four outputs of its backbone (PP-LCNetV3), at 1/4, 1/8, 1/16 and 1/32 of the page's size. Behind them are the
neck, which merges them, and the head."""

INPUT = "x"

_PACKAGE = "rapidocr_onnxruntime"
_FILE = "models/ch_PP-OCRv4_det_infer.onnx"


def find_model() -> Path:
    """The network's file. The package is not imported: that would take OpenCV along.

    Raises FailedPrecondition, saying what to install, if it is not there.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / _FILE
        if file.is_file():
            return file
    raise FailedPrecondition(
        "the demo's network is not installed: pip install 'zmq-offload[demo]' (on Python 3.13 and later, for which "
        "rapidocr-onnxruntime has no release, unpack its wheel and name the file: --model "
        "ch_PP-OCRv4_det_infer.onnx)"
    )
