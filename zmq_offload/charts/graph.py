"""The picture of a model's graph: stretches from top to bottom, their work, and the cuts between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zmq_offload.charts.style import COLORS, FAINT, INK, byte_size, shortened, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.27
"""Inches that a stretch takes."""

_BARS = 0.36
"""The part of their axis that bars take. The rest is for the text next to them."""


@dataclass(frozen=True)
class Stretch:
    """Operators that no listed cut separates, and the place after them.

    `work` is their share of the model's multiply-adds. `nbytes` is what a cut after them sends, in `tensors` tensors;
    `cut` names them if the model can be cut there by name. The last stretch has no place after it: `nbytes` is 0.
    """

    operators: str
    work: float
    nbytes: int
    tensors: int
    cut: str | None


@dataclass(frozen=True)
class GraphChart:
    """`skips` are pairs of stretches: a tensor that the first computes is read by the second, not only by the next."""

    title: str
    summary: Sequence[str]
    stretches: Sequence[Stretch]
    skips: Sequence[tuple[int, int]]


def draw(chart: GraphChart) -> Figure:
    """The graph on the left, with arcs for tensors that skip stretches; bytes of the cuts on the right."""
    rows = len(chart.stretches)
    lines = [*chart.summary, "A filled bar is a cut by name; a hollow one takes several tensors, or cannot be named."]
    with styled(0.75 + _ROW * rows, chart.title, lines) as figure:
        graph, sizes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 4))
        _draw_graph(graph, chart)
        _draw_sizes(sizes, chart)
        for axes in (graph, sizes):
            axes.set_ylim(rows - 0.4, -0.6)
            axes.tick_params(axis="y", length=0, labelleft=False)
            axes.grid(visible=False)
            axes.spines["left"].set_visible(False)
    return figure


def _draw_graph(axes: Axes, chart: GraphChart) -> None:
    from matplotlib.patches import Arc, FancyBboxPatch

    axes.set_title("Operators, their share of the work")
    most = max((s.work for s in chart.stretches), default=0.0) or 1.0
    for at, stretch in enumerate(chart.stretches):
        box = FancyBboxPatch(
            (0.0, at - 0.36), 1.0, 0.72, boxstyle="round,pad=0,rounding_size=0.03", mutation_aspect=4,
            facecolor=COLORS[0], alpha=0.06 + 0.54 * stretch.work / most, edgecolor="none",
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(0.02, at, shortened(stretch.operators, 28), va="center", fontsize=7, color=INK)
        if stretch.work >= 0.0005:
            axes.text(0.98, at, f"{stretch.work:.1%}", va="center", ha="right", fontsize=7, color=INK)
    for first, last in chart.skips:
        height = last - first
        width = min(0.5, 0.05 + 0.035 * height)
        axes.add_patch(Arc((0.0, (first + last) / 2), width, height, theta1=90, theta2=270, color=FAINT, lw=0.8))
    axes.set_xlim(-0.28, 1.02)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _draw_sizes(axes: Axes, chart: GraphChart) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_title("Bytes that a cut here sends, logarithmic")
    places = [(at + 0.5, s) for at, s in enumerate(chart.stretches) if s.nbytes]
    least = min((s.nbytes for _, s in places), default=1)
    largest = max((s.nbytes for _, s in places), default=1)
    offloaded = 1.0
    for at, stretch in enumerate(chart.stretches):
        offloaded -= stretch.work
        if not stretch.nbytes:
            continue
        named = stretch.cut is not None
        axes.barh(
            at + 0.5, stretch.nbytes - least / 2, 0.42, left=least / 2, color=COLORS[0] if named else "white",
            edgecolor=COLORS[0] if named else FAINT, linewidth=0.8, gid="cut" if named else "between",
        )  # fmt: skip
        what = (
            shortened(stretch.cut, 26)
            if stretch.cut is not None
            else f"{stretch.tensors} tensor{'s' * (stretch.tensors > 1)}"
        )
        text = f"{what} · {byte_size(stretch.nbytes)} · {max(offloaded, 0.0):.0%} offloaded"
        axes.annotate(
            text, (stretch.nbytes, at + 0.5), (4, 0), textcoords="offset points", va="center", fontsize=7,
            color=INK if named else FAINT,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(least / 2, least / 2 * (2 * largest / least) ** (1 / _BARS))
    marks = _marks(least, largest)
    axes.set_xticks(marks, list(map(byte_size, marks)))
    axes.xaxis.set_minor_locator(NullLocator())


def _marks(least: int, largest: int) -> list[float]:
    """Round numbers of bytes up to the largest, as many as the axis has room for."""
    decades = range(math.floor(math.log10(least / 2)), math.ceil(math.log10(largest)) + 1)
    factors = (1, 2, 5) if largest < 20 * least else (1,)
    marks = [factor * 10.0**decade for decade in decades for factor in factors]
    marks = [mark for mark in marks if least / 2 <= mark <= largest]
    return marks[:: -(-len(marks) // 5) or 1]
