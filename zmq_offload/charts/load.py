"""The charts of a load test: a picture with matplotlib, and an interactive page with plotly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zmq_offload.charts.style import COLORS, FAINT, GRID, INK, MARKERS, every_nth, legend_above, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as PlotlyFigure

_LABELS = 20
"""Levels whose names are readable next to each other."""

THROUGHPUT, LATENCY, PARTS = "Throughput", "Latency", "Where the time goes"


@dataclass(frozen=True)
class LoadChart:
    """A value of each series for each level; NaN where a level has none. Times are in milliseconds.

    `latency` has a series for each percentile, `parts` one for each part of the mean latency, from the bottom up.
    """

    title: str
    setting: str
    level: str
    names: Sequence[str]
    throughput: Sequence[float]
    latency: Mapping[str, Sequence[float]]
    parts: Mapping[str, Sequence[float]]


def draw(chart: LoadChart) -> Figure:
    """Three panels over the levels: requests a second, percentiles of the latency, its mean in parts."""
    places = range(len(chart.names))
    with styled(6.4, chart.title, [chart.setting]) as figure:
        rate, latency, parts = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.6, 1.6))
        rate.set_title(THROUGHPUT)
        rate.set_ylabel("requests/s")
        rate.plot(places, chart.throughput, "o-", color=COLORS[0])
        latency.set_title(LATENCY)
        latency.set_ylabel("ms")
        for (name, values), color, marker in zip(chart.latency.items(), COLORS, MARKERS, strict=False):
            latency.plot(places, values, f"{marker}-", color=color, label=name)
        parts.set_title(PARTS)
        parts.set_ylabel("ms, mean")
        bottom = [0.0] * len(chart.names)
        for (name, values), color in zip(chart.parts.items(), COLORS, strict=False):
            finite = [value if value > 0 else 0.0 for value in values]  # NaN is not above 0 either
            parts.bar(places, finite, min(0.6, 0.08 * len(chart.names)), bottom, color=color, label=name)
            bottom = [low + value for low, value in zip(bottom, finite, strict=True)]
        for axes in (rate, latency, parts):
            axes.set_ylim(0, 1.08 * axes.dataLim.y1 if 0 < axes.dataLim.y1 < math.inf else 1)
            axes.grid(visible=False, axis="x")
        for axes in (latency, parts):
            legend_above(axes, len(chart.parts))
        shown = every_nth(chart.names, _LABELS)
        parts.set_xticks([at for at, _ in shown], [name for _, name in shown])
        parts.set_xlim(-0.6, len(chart.names) - 0.4)
        parts.set_xlabel(chart.level)
        figure.align_ylabels()
    return figure


def interactive(chart: LoadChart) -> PlotlyFigure:
    """The same three panels to be pointed at: values of all series of a level, zoom, series shown and hidden."""
    from plotly.graph_objects import Bar, Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, row_heights=(1, 1.6, 1.6), vertical_spacing=0.07,
        subplot_titles=(THROUGHPUT, LATENCY, PARTS),
    )  # fmt: skip
    names = list(chart.names)
    rate = Scatter(
        x=names, y=_values(chart.throughput), name="requests/s", line_color=COLORS[0], showlegend=False,
        hovertemplate="%{y:,.1f}/s",
    )  # fmt: skip
    figure.add_trace(rate, row=1, col=1)
    for (name, values), color in zip(chart.latency.items(), COLORS, strict=False):
        line = Scatter(
            x=names, y=_values(values), name=name, line_color=color, mode="lines+markers", legend="legend",
            hovertemplate="%{y:.3f} ms",
        )  # fmt: skip
        figure.add_trace(line, row=2, col=1)
    for (name, values), color in zip(chart.parts.items(), COLORS, strict=False):
        bar = Bar(
            x=names, y=_values(values), name=name, marker_color=color, legend="legend2", hovertemplate="%{y:.3f} ms"
        )
        figure.add_trace(bar, row=3, col=1)
    figure.update_yaxes(rangemode="tozero", gridcolor=GRID, zerolinecolor=FAINT, title_font_color=FAINT)
    figure.update_xaxes(type="category", gridcolor=GRID)
    for row, unit in ((1, "requests/s"), (2, "ms"), (3, "ms, mean")):
        figure.update_yaxes(title_text=unit, row=row, col=1)
    figure.update_xaxes(title_text=chart.level, row=3, col=1)
    figure.update_layout(
        barmode="stack", hovermode="x unified", height=860, plot_bgcolor="white", paper_bgcolor="white",
        font={"color": INK, "family": "system-ui, sans-serif"}, margin={"l": 70, "r": 20, "t": 40, "b": 60},
        legend={"y": 0.72, "yanchor": "top"}, legend2={"y": 0.3, "yanchor": "top"},
    )  # fmt: skip
    return figure


def interactive_html(chart: LoadChart) -> str:
    """`interactive` as an element of an HTML page that needs no network: plotly's own JavaScript (4.8 MB) is in it."""
    from plotly.io import to_html

    config = {"displaylogo": False, "responsive": True}
    return str(to_html(interactive(chart), config=config, include_plotlyjs=True, full_html=False))


def _values(values: Sequence[float]) -> list[float | None]:
    return [value if value == value else None for value in values]
