"""The chart of recorded links: bandwidth and delay over time, and when nothing passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zmq_offload.charts.style import COLORS, FAINT, shortened, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UP, DOWN, DELAY, STALL = COLORS[0], COLORS[3], COLORS[1], "#fecaca"


@dataclass(frozen=True)
class Recorded:
    """A link over time: from each of `seconds` on, Mbit/s up and down, ms of round trip, and whether nothing passes.
    `seconds` has one number more than the others: the end."""

    name: str
    seconds: Sequence[float]
    up: Sequence[float]
    down: Sequence[float]
    rtt: Sequence[float]
    stalled: Sequence[bool]


def draw(links: Sequence[Recorded]) -> Figure:
    """A panel for each link, two in a row; a lone one has the whole width."""
    columns = min(2, len(links))
    rows = -(-len(links) // columns)
    notes = ["Above: bandwidth, up and down, on a logarithmic scale. Below: round trip. Red: nothing passes."]
    with styled(1.75 * rows + 0.2, "Recorded links", notes) as figure:
        grid = figure.subplots(
            2 * rows, columns, squeeze=False, gridspec_kw={"height_ratios": [5, 3] * rows}, sharex="col"
        )
        for at, link in enumerate(links):
            row, column = divmod(at, columns)
            _bandwidth(grid[2 * row][column], link)
            _round_trip(grid[2 * row + 1][column], link)
        for row in range(2 * rows):
            for axes in grid[row][len(links) - (row // 2) * columns :]:
                axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("s")
        grid[0][0].legend(loc="upper right", bbox_to_anchor=(1.0, 1.3), ncols=2, borderpad=0.1, columnspacing=1.0)
    return figure


def _bandwidth(axes: Axes, link: Recorded) -> None:
    for name, rates, color in (("down", link.down, DOWN), ("up", link.up, UP)):
        axes.stairs([max(rate, 0.01) for rate in rates], list(link.seconds), baseline=None, color=color, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.set_title(shortened(link.name, 48))
    axes.set_ylabel("Mbit/s")
    _stalls(axes, link)


def _round_trip(axes: Axes, link: Recorded) -> None:
    axes.stairs(list(link.rtt), list(link.seconds), baseline=None, color=DELAY, gid="round trip")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms", color=FAINT)
    _stalls(axes, link)


def _stalls(axes: Axes, link: Recorded) -> None:
    for at, stalled in enumerate(link.stalled):
        if stalled:
            axes.axvspan(link.seconds[at], link.seconds[at + 1], color=STALL, linewidth=0)
    axes.set_xlim(link.seconds[0], link.seconds[-1])
