"""The chart of a plan: for each cut of a model, the latency of splitting there and the bytes that cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from zmq_offload.charts.style import COLORS, INK, MARKERS, byte_size, every_nth, shortened, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = 42
"""Names of cuts that are readable next to each other."""


@dataclass(frozen=True)
class Point:
    """One split: the index of its cut, its latency in milliseconds, and whether it was built and run."""

    at: int
    latency: float
    measured: bool


@dataclass(frozen=True)
class Curve:
    """The splits with one encoding. `sizes` has the bytes that cross at each cut, allowed or not."""

    encoding: str
    points: Sequence[Point]
    sizes: Sequence[int]


@dataclass(frozen=True)
class CutsChart:
    """`names` are the cuts in the order of the model; `local` is the latency of the device alone, in milliseconds;
    `chosen` is None where the choice is to stay there."""

    title: str
    summary: str
    names: Sequence[str]
    curves: Sequence[Curve]
    local: float
    chosen: Point | None


def draw(chart: CutsChart) -> Figure:
    """Both axes of values are logarithmic: the first cuts may cost a hundred times as much as the best ones."""
    with styled(5.2, chart.title, [chart.summary]) as figure:
        latency, size = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.5))
        _draw_latency(latency, chart)
        _draw_sizes(size, chart)
        shown = every_nth([shortened(name, 20) for name in chart.names], _LABELS)
        size.set_xticks([at for at, _ in shown], [name for _, name in shown], rotation=90)
        size.set_xlim(-0.7, len(chart.names) - 0.3)
        figure.align_ylabels()
    return figure


def _draw_latency(axes: Axes, chart: CutsChart) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_title("Latency by cut", pad=34)
    axes.set_ylabel("ms, logarithmic")
    lines = []
    for curve, color, marker in zip(chart.curves, COLORS, MARKERS, strict=False):
        at = [p.at for p in curve.points]
        lines += axes.plot(at, [p.latency for p in curve.points], color=color, label=curve.encoding)
        for measured in (False, True):
            own = [p for p in curve.points if p.measured == measured]
            axes.plot(
                [p.at for p in own], [p.latency for p in own], marker, color=color, mew=1.2,
                mfc=color if measured else "white", gid="measured" if measured else "estimated",
            )  # fmt: skip
    local = axes.axhline(chart.local, color=INK, linestyle=(0, (4, 2)), linewidth=1.1)
    local.set_label(f"device only, {chart.local:.1f} ms")
    marks = axes.plot([], [], "o", color=INK, mfc="white", mew=1.2, label="estimated")
    marks += axes.plot([], [], "o", color=INK, mew=1.2, label="measured")
    if chart.chosen is not None:
        at, latency = [chart.chosen.at], [chart.chosen.latency]
        marks += axes.plot(at, latency, "o", color=INK, mfc="none", ms=11, mew=1.5, label="chosen", gid="chosen")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    # A legend fills columns: here the first row is what lines are, the second one what marks are.
    pairs = list(zip_longest([*lines, local], marks))
    handles = [handle or axes.plot([], [], linestyle="none", label=" ")[0] for pair in pairs for handle in pair]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=len(pairs), columnspacing=1.6)


def _draw_sizes(axes: Axes, chart: CutsChart) -> None:
    axes.set_title("Bytes that cross")
    axes.set_ylabel("logarithmic")
    width = 0.8 / max(1, len(chart.curves))
    for number, (curve, color) in enumerate(zip(chart.curves, COLORS, strict=False)):
        shift = (number - (len(chart.curves) - 1) / 2) * width
        axes.bar([at + shift for at in range(len(curve.sizes))], curve.sizes, width, color=color)
    axes.set_yscale("log")
    axes.set_ylim(bottom=min((s for curve in chart.curves for s in curve.sizes), default=1) / 2)
    axes.yaxis.set_major_formatter(lambda value, _: byte_size(value))
    axes.grid(visible=False, axis="x")
