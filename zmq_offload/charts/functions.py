"""The chart of a profile: a bar for the time of each function, and in it the part that the arithmetic needs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from zmq_offload.charts.style import FAINT, INK, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["model", "offloaded", "machine"]

_COLORS: dict[Kind, str] = {"model": "#9ebee4", "offloaded": "#eca85c", "machine": "#c8ccd2"}
_ARITHMETIC = "#1d549b"
_ROW = 0.36
"""Inches."""

_ARITHMETIC_TEXT = "of it, arithmetic at the machine's peak"
_TEXTS: dict[Kind, str] = {
    "model": "time", "offloaded": "offloaded", "machine": "not a function of the model",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One function: `value` is its time in the chart's unit, `of_peak` its share of the measured peak (0 to 1); the
    texts stand left and right of its bar, `detail` below `name` and `note` below `figure`."""

    name: str
    detail: str
    value: float
    figure: str
    note: str
    kind: Kind = "model"
    of_peak: float | None = None


@dataclass(frozen=True)
class FunctionsChart:
    """`facts` are pairs of a word and a sentence."""

    title: str
    facts: Sequence[tuple[str, str]]
    unit: str
    rows: Sequence[Row]


def draw(chart: FunctionsChart) -> Figure:
    """The bars from the top down, as high as the rows need."""
    from matplotlib.transforms import blended_transform_factory

    lines = [line for word, text in chart.facts for line in _wrapped(word, text)]
    with styled(0.75 + _ROW * len(chart.rows), chart.title, lines) as figure:
        axes = figure.subplots()
        places = range(len(chart.rows))
        for kind, color in _COLORS.items():
            own = [(at, row.value) for at, row in enumerate(chart.rows) if row.kind == kind]
            if own:
                axes.barh([at for at, _ in own], [value for _, value in own], 0.6, color=color, label=_TEXTS[kind])
        known = [
            (at, row.value * min(1.0, row.of_peak)) for at, row in enumerate(chart.rows) if row.of_peak is not None
        ]
        if known:
            at, values = [at for at, _ in known], [value for _, value in known]
            axes.barh(at, values, 0.6, color=_ARITHMETIC, label=_ARITHMETIC_TEXT)
        axes.set_yticks(places, [""] * len(chart.rows))
        axes.set_ylim(len(chart.rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.02 * max((row.value for row in chart.rows), default=1.0) or 1.0)
        axes.set_xlabel(f"{chart.unit} a run")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        _write_rows(axes, chart.rows)
        axes.set_title(" ")  # room for the legend, which is as wide as the picture and not as the axes
        across = blended_transform_factory(figure.transFigure, axes.transAxes)
        legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), bbox_transform=across, ncols=4, borderpad=0.2)
        legend.set_in_layout(False)
    return figure


def _write_rows(axes: Axes, rows: Sequence[Row]) -> None:
    """Texts in points from the bars' axes, so that names of any length have their room."""
    for at, row in enumerate(rows):
        for x, left, text, up, size, color in (
            (0.0, True, row.name, True, 7.5, INK), (0.0, True, row.detail, False, 6.5, FAINT),
            (1.0, False, row.figure, True, 7.5, INK), (1.0, False, row.note, False, 6.5, FAINT),
        ):  # fmt: skip
            axes.annotate(
                text, (x, at), (-6 if left else 6, 5 if up else -5), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right" if left else "left", va="center", fontsize=size, color=color,
            )  # fmt: skip


def _wrapped(word: str, text: str) -> list[str]:
    first, *others = textwrap.wrap(text, 100) or [""]
    return [f"{word}: {first}", *(f"    {line}" for line in others)]
