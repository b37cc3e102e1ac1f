"""ONNX's tests of whole models and of layers that its package contains, and its networks with constant weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.support.operator_cases import Case

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"

KINDS = ("simple", "pytorch-converted", "pytorch-operator")


@functools.cache
def model_cases() -> tuple[Case, ...]:
    """The cases of `KINDS` whose inputs and outputs are tensors of numbers or booleans."""
    return tuple(case for kind in KINDS for case in _cases(kind))


def _cases(kind: str) -> Iterator[Case]:
    for folder in sorted((DATA / kind).glob("test_*")):
        model = onnx.load(folder / "model.onnx")
        for number, data in enumerate(sorted(folder.glob("test_data_set_*"))):
            values = [[_tensor(file) for file in _ordered(data, part)] for part in ("input", "output")]
            if all(value is not None and value.dtype.kind in "biuf" for ends in values for value in ends):
                name = f"{kind}/{folder.name}" + (f"_{number}" if number else "")
                inputs, outputs = (tuple(v for v in ends if v is not None) for ends in values)
                yield Case(name, model, inputs, outputs, 1e-3, 1e-5)


def _ordered(folder: Path, part: str) -> list[Path]:
    return sorted(folder.glob(f"{part}_*.pb"), key=lambda file: int(file.stem.split("_")[1]))


def _tensor(file: Path) -> np.ndarray | None:
    try:
        tensor = onnx.TensorProto.FromString(file.read_bytes())
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception:  # a sequence, or text
        return None


def light_networks() -> Iterator[Case]:
    """Networks of ONNX's model zoo with constant weights; their right outputs are those of an input of ones."""
    for path in sorted((DATA / "light").glob("*.onnx")):
        model = onnx.load(path)
        right = _tensor(path.with_name(f"{path.stem}_output_0.pb"))
        weights = {w.name for w in model.graph.initializer}
        info = next(i for i in model.graph.input if i.name not in weights)
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        assert right is not None
        yield Case(f"light/{path.stem}", model, (np.ones(shape, "f4"),), (right,), 1e-3, 1e-5)
