"""Work on a model is done once, however many questions are asked about it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from zmq_offload.compile import compile_model, list_cuts
from zmq_offload.compile.models import onnx_model
from zmq_offload.compile.onnx import importer

SHAPES = {"x": (1, 3, 8, 8)}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a model was read, simplified, and imported, and how often ONNX inferred its shapes."""
    done: Counter[str] = Counter()
    steps = [
        (onnx_model, "read_onnx"),
        (importer, "fold"),
        (importer, "import_graph"),
        (onnx.shape_inference, "infer_shapes"),
    ]
    for module, name in steps:
        original = getattr(module, name)

        def counted(*args: Any, _name: str = name, _original: Any = original, **more: Any) -> Any:
            done[_name] += 1
            return _original(*args, **more)

        monkeypatch.setattr(module, name, counted)
    return done


ONCE = {"read_onnx": 1, "fold": 1, "import_graph": 1, "infer_shapes": 1}


def test_cuts_are_listed_with_one_import(convnet: Path, work: Counter[str]) -> None:
    assert list_cuts(convnet, inputs=SHAPES)
    assert work == ONCE


def test_a_model_is_compiled_and_checked_with_one_import(convnet: Path, work: Counter[str], tmp_path: Path) -> None:
    compiled = compile_model(convnet, inputs=SHAPES, cut="features", name="net", output=tmp_path, check=True)
    assert compiled.check is not None and compiled.check.losses
    assert work == ONCE
