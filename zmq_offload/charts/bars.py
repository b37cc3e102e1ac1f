"""Panels of horizontal bars with one scale each: several things compared under several conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zmq_offload.charts.style import COLORS, FAINT, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Bars:
    """`panels` has a value for each name, by the panel's title; a name without a value is shown as failed. `groups`
    gives each name the number of its color, or None for gray."""

    title: str
    panels: Mapping[str, Mapping[str, float]]
    names: Sequence[str]
    groups: Mapping[str, int | None]
    text: Callable[[float], str] = str


def draw(chart: Bars) -> Figure:
    """Two panels side by side; the names stand left of the first."""
    columns = min(2, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    with styled(rows * (0.4 + 0.21 * len(chart.names)), chart.title, ["Each panel has a scale of its own."]) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(chart.panels) :]:
            axes.set_axis_off()
        places = range(len(chart.names))
        for axes, (title, values) in zip(grid.flat, chart.panels.items(), strict=False):
            axes.set_title(title)
            groups = [chart.groups[name] for name in chart.names]
            colors = [FAINT if group is None else COLORS[group % len(COLORS)] for group in groups]
            axes.barh(places, [values.get(name, 0.0) for name in chart.names], 0.62, color=colors)
            for at, name in enumerate(chart.names):
                text = chart.text(values[name]) if name in values else "failed"
                axes.annotate(
                    text, (values.get(name, 0.0), at), (4, 0), textcoords="offset points", va="center", fontsize=7.5,
                    color=FAINT,
                )  # fmt: skip
            axes.set_xlim(0, 1.35 * max(values.values(), default=1.0))
            axes.set_yticks(places, chart.names)
            axes.set_ylim(len(chart.names) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelbottom=False, length=0)
            axes.grid(visible=False)
            axes.spines["bottom"].set_visible(False)
    return figure
