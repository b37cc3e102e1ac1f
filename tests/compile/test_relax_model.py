"""Relax modules from Python, cut by the names of their variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tests.support import onnx_models
from tests.support.local_client import LocalClient
from zmq_offload.compile import compile_model, list_cuts
from zmq_offload.device.model import load
from zmq_offload.errors import InvalidArgument


def module(rows: Any = 2) -> tvm.IRModule:
    """x -> h, a product -> relu, without a name that is unique -> y."""
    x = relax.Var("x", relax.TensorType([rows, 4], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            h = builder.emit(relax.op.matmul(x, relax.const(onnx_models.random(4, 3))), "h")
            y = builder.emit_output(relax.op.exp(builder.emit(relax.op.nn.relu(h))), "y")
        builder.emit_func_output(y)
    return builder.get()


def expected(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.exp(np.maximum(x @ onnx_models.random(4, 3), 0))


@pytest.mark.parametrize("rows", [2, None])
def test_a_module_is_compiled_like_a_file(tmp_path: Path, rows: int | None) -> None:
    mod = module(rows or tirx.Var("n", "int64"))
    compiled = compile_model(mod, cut="h", name="m", output=tmp_path, check=True)
    assert compiled.check is not None and "no other runtime" in str(compiled.check)
    assert compiled.models[0].inputs[0].shape == (rows or -1, 3)
    x = onnx_models.random(2, 4, seed=5)
    with load(compiled.device, client=LocalClient(tmp_path / "repository")) as model:
        np.testing.assert_allclose(model(x), expected(x), rtol=1e-5)


def test_a_symbolic_extent_can_be_fixed(tmp_path: Path) -> None:
    mod = module(tirx.Var("n", "int64"))
    compiled = compile_model(mod, cut="h", inputs={"x": (5, 4)}, name="m", output=tmp_path)
    assert compiled.models[0].inputs[0].shape == (5, 3)


def test_its_cuts_are_listed() -> None:
    assert {"x", "h"} <= {point.name for point in list_cuts(module())}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cut": "g"}, "no tensor 'g'"),
        ({"cut": "h", "inputs": {"z": (2, 4)}}, "no input 'z'; it has 'x'"),
        ({"cut": "h", "inputs": {"x": (2,)}}, "'x' has 2 dimensions in the module, not 1"),
        ({"cut": "h", "inputs": {"x": (2, 5)}}, "'x' has the extent 4 in the module, not 5"),
    ],
)
def test_what_does_not_fit_the_module_is_refused(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        compile_model(module(), name="m", output=tmp_path, **arguments)
