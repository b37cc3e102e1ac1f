"""Indices that point outside of a tensor are clamped: they come from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import onnx_models
from tests.support.local_client import LocalClient
from zmq_offload.byoc.model import load
from zmq_offload.compile import compile_model

TABLE = onnx_models.random(5, 4)
UPDATES = onnx_models.random(2, 3, seed=1)
HUGE = 10**12


def clamp(indices: Any, extents: Any) -> Any:
    """Negative indices count from the end, and what is still outside is the first or the last."""
    indices = np.where(indices < 0, indices + np.array(extents), indices)
    return np.clip(indices, 0, np.array(extents) - 1)


def gather(ids: Any) -> Any:
    return TABLE[clamp(ids, 5)]


def gather_elements(ids: Any) -> Any:
    return np.take_along_axis(TABLE, clamp(ids, 5), 0)


def gather_nd(ids: Any) -> Any:
    ids = clamp(ids, (5, 4))
    return TABLE[ids[..., 0], ids[..., 1]]


def scatter_elements(ids: Any) -> Any:
    result = TABLE.copy()
    result[clamp(np.maximum(ids, -5), 5), np.arange(ids.shape[1])] = UPDATES
    return result


def scatter_nd(ids: Any) -> Any:
    result = TABLE.copy()
    ids = clamp(ids, (5, 4))
    result[ids[..., 0], ids[..., 1]] = UPDATES[0]
    return result


@pytest.mark.parametrize(
    ("operator", "shape", "reference"),
    [
        ("Gather", (2, 3), gather),
        ("GatherElements", (2, 4), gather_elements),
        ("GatherND", (2, 3, 2), gather_nd),
        ("ScatterElements", (2, 3), scatter_elements),
        ("ScatterND", (3, 2), scatter_nd),
    ],
)
def test_indices_out_of_range_neither_crash_nor_read_elsewhere(
    tmp_path: Path, operator: str, shape: tuple[int, ...], reference: Any
) -> None:
    weights = {"table": TABLE, "updates": UPDATES[0] if operator == "ScatterND" else UPDATES}
    inputs = ["table", "ids"] + (["updates"] if operator.startswith("Scatter") else [])
    attributes = {"axis": 0} if operator.endswith("Elements") else {}
    nodes = [
        helper.make_node("Identity", ["x"], ["ids"]),
        helper.make_node(operator, inputs, ["found"], **attributes),
        helper.make_node("Identity", ["found"], ["y"]),
    ]
    # Rows 1, 2, ...: clamping to either end meets none of them, so that what a scatter leaves is certain.
    ids = np.arange(np.prod(shape), dtype="i8").reshape(shape) // shape[-1] % 3 + 1
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "model",
        [info("x", TensorProto.INT64, shape)],
        [info("y", TensorProto.FLOAT, reference(ids).shape)],
        [numpy_helper.from_array(weights[n], n) for n in inputs if n != "ids"],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    compiled = compile_model(path, cut=["x"], name="m", output=tmp_path)
    model = load(compiled.device, client=LocalClient(tmp_path / "repository"))
    np.testing.assert_array_equal(model(ids), reference(ids))
    for wrong in (-1, 7, -7, HUGE, -HUGE):
        spoilt = ids.copy()
        spoilt.flat[0] = wrong
        np.testing.assert_array_equal(model(spoilt), reference(spoilt))
