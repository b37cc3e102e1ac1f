"""Text regions out of the probability map of a DB ("differentiable binarization") text detector.

As PP-OCR does it: threshold, connected components, the smallest rectangle (of any angle) around each, its mean
probability as the score, and the rectangle grown again by what training had shrunk the text by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MIN_SIDE = 3.0
"""Pixels of the map; a narrower component is noise."""


@dataclass(frozen=True)
class TextRegion:
    """A quadrilateral of text: corners (x, y) clockwise from the top left, and the mean probability inside (0 to 1)."""

    corners: tuple[tuple[int, int], ...]
    score: float


@dataclass(frozen=True)
class Rectangle:
    """A rectangle of any angle: its centre, the unit vectors along its sides as rows, and the sides' lengths."""

    centre: Array
    axes: Array
    sides: Array

    def grown(self, distance: float) -> Rectangle:
        """Each edge moved outwards by `distance`."""
        return Rectangle(self.centre, self.axes, self.sides + 2 * distance)

    def corners(self) -> Array:
        """4 x 2, clockwise (y points down) from the top left."""
        half = self.axes * (self.sides / 2)[:, None]
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        by_x = sorted((self.centre + signs @ half).tolist())
        top_left, bottom_left = sorted(by_x[:2], key=lambda corner: corner[1])
        top_right, bottom_right = sorted(by_x[2:], key=lambda corner: corner[1])
        return np.array([top_left, top_right, bottom_right, bottom_left])


def find_regions(
    probability: Array,
    size: tuple[int, int],
    *,
    threshold: float = 0.3,
    min_score: float = 0.5,
    unclip_ratio: float = 1.6,
) -> list[TextRegion]:
    """The text regions of a page of `size` (width, height), from top to bottom, by its probability map (2-D).

    Pixels above `threshold` are text, regions whose score is below `min_score` are dropped. A region grows by its area
    times `unclip_ratio` over its perimeter on each side.
    """
    height, width = probability.shape
    scale = np.array([size[0] / width, size[1] / height])
    found = []
    for points in components(_dilated(probability > threshold)):
        rectangle = smallest_rectangle(points)
        if rectangle.sides.min() < MIN_SIDE:
            continue
        score = mean_inside(probability, rectangle)
        if score < min_score:
            continue
        area, perimeter = rectangle.sides.prod(), 2 * rectangle.sides.sum()
        corners = rectangle.grown(area * unclip_ratio / perimeter).corners()
        corners = np.clip(np.rint(corners * scale), 0, size).astype(int)
        found.append(TextRegion(tuple((int(x), int(y)) for x, y in corners), score))
    return sorted(found, key=lambda region: (region.corners[0][1], region.corners[0][0]))


def components(mask: Array) -> list[Array]:
    """The 8-connected components of a 2-D mask, each as the (x, y) of the ends of its horizontal runs of pixels.

    These points have the same convex hull as all of its pixels.
    """
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]  # exclusive; np.nonzero goes row by row, so they pair up with the starts
    runs = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))
    parent = list(range(len(runs)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above = 0  # the first run of the row above that can still touch
    for this, (row, start, end) in enumerate(runs):
        while runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] < start):
            above += 1
        other = above
        while runs[other][0] == row - 1 and runs[other][1] <= end:
            parent[root(this)] = root(other)
            other += 1
    members: dict[int, list[tuple[int, int]]] = {}
    for this, (row, start, end) in enumerate(runs):
        members.setdefault(root(this), []).extend([(start, row), (end - 1, row)])
    return [np.array(points) for points in members.values()]


def smallest_rectangle(points: Array) -> Rectangle:
    """The rectangle of the smallest area around points (n x 2); one of its sides lies on their convex hull."""
    hull = convex_hull(points)
    edges = np.roll(hull, -1, axis=0) - hull
    lengths = np.hypot(edges[:, 0], edges[:, 1])
    # A single point has no edge: any direction will do.
    along = edges[lengths > 0] / lengths[lengths > 0, None] if lengths.any() else np.array([[1.0, 0.0]])
    axes = np.stack([along, along[:, ::-1] * (-1, 1)], axis=1)  # edge, axis, coordinate
    projected = axes @ hull.T
    low, high = projected.min(axis=2), projected.max(axis=2)
    best = int(np.argmin((high - low).prod(axis=1)))
    return Rectangle((low[best] + high[best]) / 2 @ axes[best], axes[best], high[best] - low[best])


def convex_hull(points: Array) -> Array:
    """The corners of the convex hull of points (n x 2), in order (Andrew's monotone chain)."""
    ordered = sorted(set(map(tuple, points.tolist())))

    def half(sequence: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        chain: list[tuple[float, ...]] = []
        for x, y in sequence:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain

    lower, upper = half(ordered), half(ordered[::-1])
    return np.array(lower[:-1] + upper[:-1] or lower, dtype=float)


def mean_inside(values: Array, rectangle: Rectangle) -> float:
    """The mean of a map over the pixels whose centres are in a rectangle, its edge included."""
    corners = rectangle.corners()
    height, width = values.shape
    x0, y0 = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, (width - 1, height - 1))
    x1, y1 = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, (width - 1, height - 1))
    x, y = np.meshgrid(np.arange(x0, x1 + 1), np.arange(y0, y1 + 1))
    offsets = np.stack([x, y], axis=-1) - rectangle.centre
    inside = (np.abs(offsets @ rectangle.axes.T) <= rectangle.sides / 2 + 1e-6).all(axis=-1)
    return float(values[y0 : y1 + 1, x0 : x1 + 1][inside].mean()) if inside.any() else 0.0


def _dilated(mask: Array) -> Array:
    """Each pixel also sets its right, lower and lower right neighbour, which joins letters of a line (PP-OCR's 2 x 2
    kernel)."""
    padded = np.pad(mask, ((1, 0), (1, 0)))
    dilated: Array = padded[1:, 1:] | padded[:-1, 1:] | padded[1:, :-1] | padded[:-1, :-1]
    return dilated
