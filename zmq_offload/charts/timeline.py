"""The chart of a pipeline: which stage is busy with which item when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zmq_offload.charts.style import COLORS, FAINT, INK, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIGIT = 0.011
"""Share of the axis that a digit of a number takes."""


@dataclass(frozen=True)
class Timeline:
    """Begin and end, in milliseconds, of each stage of each item, by the item's number. All items have the same
    stages; in a stage that is in `overlapping`, an item may begin before the one ahead of it ends."""

    title: str
    items: Mapping[int, Mapping[str, tuple[float, float]]]
    overlapping: Sequence[str] = ()


def draw(chart: Timeline) -> Figure:
    """A lane for each stage and a color for each item."""
    lanes = list(next(iter(chart.items.values()), {}))
    note = "Each color is one item, with its number. Stages that overlap in time work at the same time."
    with styled(0.6 + 0.55 * max(1, len(lanes)), chart.title, [note]) as figure:
        axes = figure.subplots()
        zero = min((begin for own in chart.items.values() for begin, _ in own.values()), default=0.0)
        last = max((end for own in chart.items.values() for _, end in own.values()), default=zero + 1.0)
        for number, own in chart.items.items():
            for lane, name in enumerate(lanes):
                begin, end = own[name]
                low, height = lane - 0.3, 0.6
                if name in chart.overlapping:
                    low, height = (lane - 0.4, 0.38) if number % 2 == 0 else (lane + 0.02, 0.38)
                axes.broken_barh(
                    [(begin - zero, end - begin)], (low, height), color=COLORS[number % len(COLORS)], edgecolor="white",
                    linewidth=0.6, gid=f"{name} {number}",
                )  # fmt: skip
                if end - begin > _DIGIT * len(str(number)) * (last - zero):
                    middle = (begin + end) / 2 - zero, low + height / 2
                    axes.text(
                        *middle, str(number), color="white", fontsize=6.5, ha="center", va="center", weight="bold"
                    )
        axes.set_xlim(0, 1.01 * (last - zero))
        axes.set_ylim(max(1, len(lanes)) - 0.5, -0.5)
        axes.set_yticks(range(len(lanes)), lanes, fontsize=9, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("ms", color=FAINT)
        axes.grid(visible=False, axis="y")
        for lane in range(1, len(lanes)):
            axes.axhline(lane - 0.5, color=FAINT, linewidth=0.4)
    return figure
