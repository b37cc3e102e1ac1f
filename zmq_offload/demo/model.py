"""The demo's network: text detection of PP-OCRv4, as the PyPI package rapidocr-onnxruntime ships it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from zmq_offload.errors import FailedPrecondition

CUT = ("conv2d_469.tmp_0", "conv2d_470.tmp_0", "conv2d_471.tmp_0", "conv2d_472.tmp_0")
"""The four outputs of its backbone (PP-LCNetV3), at 1/4, 1/8, 1/16 and 1/32 of the page's size. The neck, which merges
them, and the head follow."""

INPUT = "x"

_PACKAGE = "rapidocr_onnxruntime"
_FILE = "models/ch_PP-OCRv4_det_infer.onnx"


def find_package() -> Path:
    """The folder of rapidocr-onnxruntime, which is not imported.

    Raises FailedPrecondition, with the command that installs it, if it is missing.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        return Path(folder)
    raise FailedPrecondition(
        "the demo's network is not installed; install it with: pip install 'zmq-offload[demo]' (on Python 3.13 and "
        "later also: pip install --ignore-requires-python rapidocr-onnxruntime==1.4.4)"
    )


def find_model() -> Path:
    """The network's ONNX file. Raises as `find_package` does."""
    return find_package() / _FILE
