"""Indices outside of a tensor are clamped, because they come from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support import onnx_models
from tests.support.local_client import LocalClient
from zmq_offload.compile import compile_model
from zmq_offload.device.model import load

TABLE = onnx_models.random(5, 4)
UPDATES = onnx_models.random(2, 3, seed=1)
HUGE = 10**12


def clamp(indices: Any, extents: Any) -> Any:
    """Negative indices count from the end; an index that is still outside becomes the first or the last."""
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
    # Rows 1, 2, ...: clamping to an end hits none of them, so that the result of a scatter is unambiguous.
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


def split_at_inputs(
    tmp_path: Path, node: onnx.NodeProto, inputs: dict[str, Any], shapes: dict[str, Any], opset: int = 17
) -> Any:
    """A model of one node, offloaded as a whole, to call with arrays by name."""
    info, kind = helper.make_tensor_value_info, helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_"]) for name in inputs] + [node],
        "model",
        [info(name, kind(array.dtype), [None] * array.ndim) for name, array in inputs.items()],
        [info("y", TensorProto.FLOAT, None)],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    compiled = compile_model(path, inputs=shapes, cut=list(inputs), name="m", output=tmp_path)
    return load(compiled.device, client=LocalClient(tmp_path / "repository"))


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("operator", ["RoiAlign", "MaxRoiPool"])
def test_boxes_outside_of_all_images_are_clamped(tmp_path: Path, operator: str, symbolic: bool) -> None:
    images = np.stack([np.full((2, 4, 5), value, "f4") for value in (1, 2, 3)])
    boxes = np.array([[0, 0, 3, 3]] * 3, "f4")
    inputs: dict[str, Any] = {"x": images, "r": boxes, "b": np.array([2, 0, 1])}
    attributes: dict[str, Any] = {"output_height": 2, "output_width": 2}
    if operator == "MaxRoiPool":
        inputs = {"x": images, "r": np.concatenate([inputs.pop("b")[:, None].astype("f4"), boxes], axis=1)}
        attributes = {"pooled_shape": [2, 2]}
    shapes: dict[str, Any] = {name: array.shape for name, array in inputs.items()}
    if symbolic:
        shapes = {name: ("N", *shape[1:]) for name, shape in shapes.items()} | {"x": ("N", 2, "H", "W")}
    node = helper.make_node(operator, [f"{name}_" for name in inputs], ["y"], **attributes)
    model = split_at_inputs(tmp_path, node, inputs, shapes)

    def found(numbers: list[float], boxes: Any) -> Any:
        boxes = np.asarray(boxes, "f4")
        if operator == "RoiAlign":
            return model(x=images, r=boxes, b=np.array(numbers, "i8"))
        return model(x=images, r=np.concatenate([np.array(numbers, "f4")[:, None], boxes], axis=1))

    assert found([2, 0, 1], boxes)[:, 0, 0, 0].tolist() == [3, 1, 2]
    assert found([10**9, -(10**9), 1], boxes)[:, 0, 0, 0].tolist() == [3, 1, 2]
    # Unclamped, these would be sampled for years, and outside of the images.
    wild = found([0, 1, 2], [[NAN] * 4, [-1e30, -INF, INF, 1e30], [1e9, 1e9, 3e9, NAN]])
    assert np.isfinite(wild).all() and wild.min() >= 0 and wild.max() <= 3


SYMBOLIC: dict[str, Any] = {
    "GatherElements": ({"x": (3, "L"), "ids": (3, "M")}, {"axis": 1}),
    "ScatterElements": ({"x": (3, "L"), "ids": (3, "M"), "updates": (3, "M")}, {"axis": 1}),
    "GatherND": ({"x": (3, "L"), "ids": (3, 2)}, {}),
    "ScatterND": ({"x": (3, "L"), "ids": (3, 2), "updates": (3,)}, {}),
}


@pytest.mark.parametrize("operator", SYMBOLIC)
def test_symbolic_extents_bound_indices_too(tmp_path: Path, operator: str) -> None:
    shapes, attributes = SYMBOLIC[operator]
    right = np.array([[0, 4], [1, 1], [2, 0]])
    inputs = {"x": onnx_models.random(3, 5), "ids": right, "updates": onnx_models.random(3, 2, seed=1)}
    inputs["updates"] = inputs["updates"][:, 0] if operator == "ScatterND" else inputs["updates"]
    inputs = {name: inputs[name] for name in shapes}
    node = helper.make_node(operator, [f"{name}_" for name in inputs], ["y"], **attributes)
    model = split_at_inputs(tmp_path, node, inputs, shapes)
    wild = np.array([[-HUGE, HUGE], [1, 1], [2, -HUGE]])
    if operator.endswith("ND"):
        wild[2, 0] = HUGE
    np.testing.assert_array_equal(model(**inputs | {"ids": wild}), model(**inputs))
    longer = {"x": onnx_models.random(3, 9), "ids": right + np.array([0, 4])}
    if operator == "GatherElements":
        np.testing.assert_array_equal(model(**longer), np.take_along_axis(longer["x"], longer["ids"] % 9, 1))


def test_a_reflection_of_a_symbolic_extent_stays_inside(tmp_path: Path) -> None:
    x = onnx_models.random(2, 6)
    node = helper.make_node("Pad", ["x_"], ["y"], mode="reflect", pads=[0, 4, 0, 4])
    model = split_at_inputs(tmp_path, node, {"x": x}, {"x": (2, "L")}, opset=10)
    np.testing.assert_array_equal(model(x=x), np.pad(x, [(0, 0), (4, 4)], mode="reflect"))
    assert np.isin(model(x=x[:, :2]), x[:, :2]).all()
