"""Charts on a drawing: axes with round numbers, lines over them, stacked bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zmq_offload.charts.draw import Box, Dot, Drawing, Line, Point, Text

INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
COLORS = ("#2563eb", "#f59e0b", "#dc2626", "#059669", "#7c3aed", "#0891b2")


@dataclass(frozen=True)
class Panel:
    """Where a chart's axes span, in units of the drawing."""

    x: float
    y: float
    width: float
    height: float


def ticks(most: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to at least `most`, about `count` of them."""
    if not most > 0:
        return [0.0, 1.0]
    step = 10.0 ** math.floor(math.log10(most / count))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if step * factor * count >= most)
    return [at * step for at in range(math.ceil(most / step - 1e-9) + 1)]


def number(value: float) -> str:
    """For a person, short: 12,000, 3.5, 0.025."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def frame(drawing: Drawing, panel: Panel, title: str, y_label: str, y_ticks: Sequence[float]) -> None:
    """Title, horizontal grid and its numbers."""
    drawing.add(Text(panel.x, panel.y - 18, title, 15, INK, bold=True))
    for value in y_ticks:
        y = panel.y + panel.height * (1 - value / y_ticks[-1])
        drawing.add(Line([(panel.x, y), (panel.x + panel.width, y)], FAINT if value == 0 else GRID))
        drawing.add(Text(panel.x - 8, y + 4, number(value), 11, FAINT, "end"))
    drawing.add(Text(panel.x - 48, panel.y + panel.height / 2, y_label, 12, FAINT, "middle", up=True))


def legend(drawing: Drawing, panel: Panel, names: Sequence[str]) -> None:
    x = panel.x + panel.width
    for name, color in reversed(list(zip(names, COLORS, strict=False))):
        x -= 7 * len(name) + 30
        drawing.add(Box(x, panel.y - 28, 11, 11, color), Text(x + 16, panel.y - 18, name, 12, INK))


def lines(
    drawing: Drawing,
    panel: Panel,
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    notes: Sequence[str],
) -> None:
    """A line with dots for each series. The points of one load have its note, which stands over the last series'."""
    points = [point for own in series.values() for point in own if all(map(math.isfinite, point))]
    x_ticks, y_ticks = (ticks(max((point[at] for point in points), default=0)) for at in (0, 1))
    frame(drawing, panel, title, y_label, y_ticks)
    legend(drawing, panel, list(series))
    bottom = panel.y + panel.height
    for value in x_ticks:
        x = panel.x + panel.width * value / x_ticks[-1]
        drawing.add(Line([(x, bottom), (x, bottom + 5)], FAINT))
        drawing.add(Text(x, bottom + 19, number(value), 11, FAINT, "middle"))
    drawing.add(Text(panel.x + panel.width / 2, bottom + 40, x_label, 12, FAINT, "middle"))
    for (name, own), color in zip(series.items(), COLORS, strict=False):
        placed = [
            (panel.x + panel.width * x / x_ticks[-1], bottom - panel.height * y / y_ticks[-1], x, y, note)
            for (x, y), note in zip(own, notes, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]
        drawing.add(Line([(x, y) for x, y, *_ in placed], color, 2))
        for at_x, at_y, x, y, note in placed:
            drawing.add(Dot(at_x, at_y, 4, color, f"{note}: {name} {y:.3g} ms at {number(x)}/s"))
        if color == COLORS[len(series) - 1]:
            drawing.add(*(Text(x, y - 9, note, 10, FAINT, "middle") for x, y, _, _, note in placed))


def bars(
    drawing: Drawing,
    panel: Panel,
    title: str,
    x_label: str,
    y_label: str,
    labels: Sequence[str],
    parts: Mapping[str, Sequence[float]],
) -> None:
    """A stacked bar for each label; `parts` are from bottom to top."""
    sums = [sum(values) for values in zip(*parts.values(), strict=True)]
    y_ticks = ticks(max((total for total in sums if math.isfinite(total)), default=0))
    frame(drawing, panel, title, y_label, y_ticks)
    legend(drawing, panel, list(parts))
    bottom, step = panel.y + panel.height, panel.width / max(1, len(labels))
    width = min(64.0, 0.6 * step)
    every = math.ceil(len(labels) / max(1, int(panel.width // 56)))
    for at, label in enumerate(labels):
        x, y = panel.x + (at + 0.5) * step, bottom
        for (name, values), color in zip(parts.items(), COLORS, strict=False):
            if math.isfinite(values[at]) and values[at] > 0:
                height = panel.height * values[at] / y_ticks[-1]
                y -= height
                drawing.add(Box(x - width / 2, y, width, height, color, f"{label}: {name} {values[at]:.3g} ms"))
        if at % every == 0:
            drawing.add(Text(x, bottom + 19, label, 11, FAINT, "middle"))
    drawing.add(Text(panel.x + panel.width / 2, bottom + 40, x_label, 12, FAINT, "middle"))
