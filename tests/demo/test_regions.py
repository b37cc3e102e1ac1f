"""Text regions on maps whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zmq_offload.demo.regions import find_regions

pytest.importorskip("rapidocr_onnxruntime")

Array = np.ndarray[Any, Any]


def line_of_text(height: int = 64, width: int = 128) -> Array:
    output = np.zeros((1, 1, height, width), np.float32)
    output[0, 0, 20:29, 10:91] = 0.9
    return output


def test_a_region_grows_by_its_area_over_its_perimeter_and_is_scaled_to_the_page() -> None:
    (region,) = find_regions(line_of_text(), (256, 64))
    # Dilated by one pixel: 81 x 9 between the centers of its outer pixels.
    distance = 81 * 9 * 1.6 / (2 * (81 + 9))
    left, top, right, bottom = 10 - distance, 20 - distance, 91 + distance, 29 + distance
    wanted = [(left * 2, top), (right * 2, top), (right * 2, bottom), (left * 2, bottom)]
    assert np.array(region.corners) == pytest.approx(np.array(wanted), abs=3)  # rounded before it is scaled
    assert 0.75 < region.score < 0.9


def test_a_region_does_not_leave_the_page() -> None:
    (region,) = find_regions(np.ones((1, 1, 32, 64), np.float32), (64, 32))
    assert np.array(region.corners) == pytest.approx(np.array([(0, 0), (64, 0), (64, 32), (0, 32)]), abs=1)


def test_noise_and_faint_regions_are_not_text() -> None:
    output = line_of_text()
    output[0, 0, 40:42, 40:42] = 1  # too small
    output[0, 0, 50:60, 10:90] = 0.4  # above the threshold of a pixel, below that of a region
    output[0, 0, 0, :] = 0.2  # below the threshold of a pixel
    assert len(find_regions(output, (128, 64))) == 1
    assert find_regions(np.zeros((1, 1, 32, 32), np.float32), (32, 32)) == []
    assert find_regions(np.full((1, 1, 32, 32), np.nan, np.float32), (32, 32)) == []


def test_regions_come_from_top_to_bottom() -> None:
    output = np.zeros((1, 1, 96, 64), np.float32)
    for y, x in ((60, 5), (10, 30), (30, 5)):
        output[0, 0, y : y + 8, x : x + 25] = 1
    tops = [region.corners[0][1] for region in find_regions(output, (64, 96))]
    assert tops == sorted(tops) and len(tops) == 3
