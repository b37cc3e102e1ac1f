"""GridSample and RoiAlign with channels enough for vectors agree with ONNX Runtime, and read no memory outside."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.support.operator_cases import RIGHT, floats, outcome, run


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_grid_sample(padding: str, aligned: int) -> None:
    grid = np.random.default_rng(1).uniform(-1.6, 1.6, (2, 3, 7, 2)).astype("f4")
    grid[0, 0, :6] = [[-1, -1], [1, 1], [-5, 0], [0, 1e4], [-1e4, 1e4], [1, -1]]
    node = helper.make_node("GridSample", ["x", "g"], ["y"], padding_mode=padding, align_corners=aligned)
    found = outcome(run([node], floats(2, 19, 5, 6), {"g": grid}), constant=False)
    assert found.kind == RIGHT, found.detail


@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("samples", [1, 2])
def test_roi_align(samples: int, mode: str) -> None:
    boxes = np.array(
        [[0, 0, 9, 8], [2, 3, 2, 3], [-9, -9, 40, 40], [1, 1, 7.5, 6], [-1e30, 0, 1e30, 1], [50, 50, 90, 90]], "f4"
    )
    node = helper.make_node(
        "RoiAlign", ["x", "r", "b"], ["y"], output_height=3, output_width=2, sampling_ratio=samples, spatial_scale=0.5,
        coordinate_transformation_mode=mode,
    )  # fmt: skip
    constants = {"r": boxes, "b": np.array([0, 0, 1, 1, 1, 0])}
    found = outcome(run([node], floats(2, 18, 6, 7), constants), constant=False)
    assert found.kind == RIGHT, found.detail


def test_a_box_of_no_image_is_clamped() -> None:
    """ONNX Runtime refuses such a number; the nearest image is used."""
    node = helper.make_node("RoiAlign", ["x", "r", "b"], ["y"], output_height=1, output_width=1, sampling_ratio=2)
    boxes = np.array([[0, 0, 3, 3], [1, 1, 4, 4], [0, 0, 3, 3]], "f4")
    case = run([node], floats(2, 8, 6, 6), {"r": boxes, "b": np.array([1, 0, 1])})
    numbers = next(tensor for tensor in case.model.graph.initializer if tensor.name == "b")
    numbers.CopyFrom(numpy_helper.from_array(np.array([10**9, -(10**9), 2]), "b"))
    found = outcome(case, constant=False)
    assert found.kind == RIGHT, found.detail
