"""Text regions by DB post-processing: the geometry, then the whole on maps whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from zmq_offload.demo.regions import components, convex_hull, find_regions, mean_inside, smallest_rectangle

Array = np.ndarray[Any, Any]


def mask(*rows: str) -> Array:
    return np.array([[character == "#" for character in row] for row in rows])


def by_flooding(marked: Array) -> list[set[tuple[int, int]]]:
    """Components by the definition: from each pixel to its eight neighbours."""
    left = {(int(x), int(y)) for y, x in np.argwhere(marked)}
    found = []
    while left:
        todo, group = [left.pop()], set()
        while todo:
            x, y = todo.pop()
            group.add((x, y))
            near = {(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)} & left
            left -= near
            todo += near
        found.append(group)
    return found


def test_pixels_that_touch_at_a_corner_are_one_component() -> None:
    assert len(components(mask("#..", ".#.", "..#"))) == 1
    assert len(components(mask("#.#", "...", "#.#"))) == 4
    assert len(components(mask("#.#", "#.#", ".#."))) == 1
    assert components(mask("...", "...")) == []


@given(npst.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_components_are_those_of_flooding(marked: Array) -> None:
    groups = by_flooding(marked)
    found = components(marked)
    assert len(found) == len(groups)
    for points in found:
        ends = set(map(tuple, points.tolist()))
        (group,) = [group for group in groups if ends & group]
        assert ends <= group
        assert {tuple(p) for p in convex_hull(np.array(sorted(group)))} == {tuple(p) for p in convex_hull(points)}


def test_the_hull_has_corners_only_in_order() -> None:
    square = np.array([[x, y] for x in range(4) for y in range(4)])
    assert convex_hull(square).tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
    assert convex_hull(np.array([[2, 5]])).tolist() == [[2, 5]]
    assert convex_hull(np.array([[0, 0], [1, 1], [2, 2]])).tolist() == [[0, 0], [2, 2]]


@given(
    npst.arrays(int, st.tuples(st.integers(1, 20), st.just(2)), elements=st.integers(-50, 50)),
    st.floats(0, math.pi),
)
def test_the_smallest_rectangle_holds_all_points_and_none_is_smaller(points: Array, angle: float) -> None:
    rectangle = smallest_rectangle(points)
    assert (np.abs((points - rectangle.centre) @ rectangle.axes.T) <= rectangle.sides / 2 + 1e-6).all()
    axes = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    other = np.ptp(points @ axes.T, axis=0)
    assert rectangle.sides.prod() <= other.prod() + 1e-6


@pytest.mark.parametrize("degrees", [0, 7, 30, 45, 83, -20])
def test_a_turned_rectangle_is_found_as_it_is(degrees: float) -> None:
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    corners = np.array([[-40, -10], [40, -10], [40, 10], [-40, 10]]) @ turn + (100, 80)
    found = smallest_rectangle(corners)
    assert sorted(found.sides) == pytest.approx([20, 80])
    assert sorted(found.corners().tolist()) == pytest.approx(np.array(sorted(corners.tolist())))
    assert sorted(found.grown(5).sides) == pytest.approx([30, 90])


def test_corners_go_clockwise_from_the_top_left() -> None:
    found = smallest_rectangle(np.array([[30, 10], [10, 10], [30, 20], [10, 20]]))
    assert found.corners().tolist() == [[10, 10], [30, 10], [30, 20], [10, 20]]


def test_the_score_is_the_mean_inside() -> None:
    values = np.zeros((20, 20))
    values[5:10, 5:15] = 1
    inside = smallest_rectangle(np.array([[5, 5], [14, 9], [5, 9], [14, 5]]))
    assert mean_inside(values, inside) == 1
    assert mean_inside(values, inside.grown(1)) == pytest.approx(50 / (7 * 12))


def line_of_text(shape: tuple[int, int] = (64, 128)) -> Array:
    probability = np.zeros(shape, np.float32)
    probability[20:29, 10:91] = 0.9
    return probability


def test_a_region_grows_by_its_area_over_its_perimeter_and_is_scaled_to_the_page() -> None:
    (region,) = find_regions(line_of_text(), (256, 64), unclip_ratio=1.6)
    # Dilated by one to the right and below: 81 x 9 between the centres of its outer pixels.
    distance = 81 * 9 * 1.6 / (2 * (81 + 9))
    left, top, right, bottom = 10 - distance, 20 - distance, 91 + distance, 29 + distance
    wanted = [(left * 2, top), (right * 2, top), (right * 2, bottom), (left * 2, bottom)]
    assert np.array(region.corners) == pytest.approx(np.array(wanted), abs=0.5)
    assert 0.8 < region.score < 0.9  # what dilation added is not as probable


def test_a_region_does_not_leave_the_page() -> None:
    (region,) = find_regions(np.ones((32, 64), np.float32), (64, 32))
    assert region.corners == ((0, 0), (64, 0), (64, 32), (0, 32))


def test_noise_and_faint_regions_are_no_text() -> None:
    probability = line_of_text()
    probability[40:42, 40:42] = 1  # too small
    probability[50:60, 10:90] = 0.4  # over the threshold, under the score
    probability[0, :] = 0.2  # under the threshold
    assert len(find_regions(probability, (128, 64))) == 1
    assert len(find_regions(probability, (128, 64), min_score=0.3)) == 2
    assert find_regions(np.zeros((32, 32), np.float32), (32, 32)) == []


def test_regions_come_from_top_to_bottom() -> None:
    probability = np.zeros((96, 64), np.float32)
    for y, x in ((60, 5), (10, 30), (30, 5)):
        probability[y : y + 8, x : x + 25] = 1
    tops = [region.corners[0][1] for region in find_regions(probability, (64, 96))]
    assert tops == sorted(tops)
    assert len(tops) == 3


def test_nan_is_no_text() -> None:
    assert find_regions(np.full((32, 32), np.nan, np.float32), (32, 32)) == []
