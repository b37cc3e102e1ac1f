"""A plan as a picture: the latency of a cut at each point, and the bytes that cross there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from zmq_offload.charts.chart import COLORS, FAINT, GRID, INK, Panel, frame, legend, ticks
from zmq_offload.charts.draw import Box, Dot, Drawing, Line, Text
from zmq_offload.plan.costs import Costs, Prediction, Split, Wire
from zmq_offload.plan.search import Decision

WIDTH, HEIGHT = 1100, 720
_LATENCY = Panel(90, 116, 960, 300)
_BYTES = Panel(90, 476, 960, 130)
_LABELS = 48
"""More names than that do not stand beside each other."""
_HIGHEST = 2.5
"""What takes so many times as long as all of what matters leaves the picture: a cut that is out of the question."""

Across: TypeAlias = Callable[[float], float]


def draw(costs: Costs, decision: Decision, wires: Sequence[Wire], title: str) -> Drawing:
    """Cuts behind which everything runs on the server, in graph order, as far as they are allowed."""
    drawing = Drawing(WIDTH, HEIGHT)
    last = len(costs.points) - 1
    drawing.add(Text(_LATENCY.x, 36, title, 18, INK, bold=True))
    drawing.add(Text(_LATENCY.x, 62, _summary(costs, decision.chosen), 14, INK))
    allowed = {p.split: p for p in decision.ranking}
    curves = {w: [allowed.get(Split(at, last, w)) for at in range(last)] for w in wires}
    step = _LATENCY.width / max(1, last)

    def across(point: float) -> float:
        return _LATENCY.x + (point + 0.5) * step

    _latencies(drawing, decision, curves, across, last)
    _bytes(drawing, costs, wires, across, last)
    return drawing


def _summary(costs: Costs, chosen: Prediction) -> str:
    if chosen.local:
        return f"chosen: device only, {chosen.latency * 1e3:.1f} ms"
    until = "" if chosen.split.end == len(costs.points) - 1 else f" until {costs.points[chosen.split.end].name}"
    return (
        f"chosen: {costs.points[chosen.split.start].name}{until} as {chosen.split.wire}, {chosen.latency * 1e3:.1f} ms"
    )


def _latencies(
    drawing: Drawing,
    decision: Decision,
    curves: Mapping[Wire, Sequence[Prediction | None]],
    across: Across,
    last: int,
) -> None:
    best = [min((p.latency for p in curve if p), default=0.0) for curve in curves.values()]
    shown = [p.latency for curve in curves.values() for p in curve if p]
    limit = _HIGHEST * max(decision.local.latency, decision.chosen.latency, *best)
    y_ticks = ticks(1e3 * min(limit, max([*shown, decision.local.latency])))
    frame(drawing, _LATENCY, "Latency of a cut at each point", "ms", y_ticks)
    legend(drawing, _LATENCY, list(curves))

    def down(seconds: float) -> float:
        return _LATENCY.y + _LATENCY.height * (1 - min(1e3 * seconds / y_ticks[-1], 1))

    for (wire, curve), color in zip(curves.items(), COLORS, strict=False):
        points = [(across(at), down(p.latency), p) for at, p in enumerate(curve) if p]
        drawing.add(Line([(x, y) for x, y, _ in points], color, 2))
        drawing.add(*(Dot(x, y, 3, color, f"{wire}: {p.latency * 1e3:.2f} ms") for x, y, p in points))
    local = down(decision.local.latency)
    drawing.add(Line([(_LATENCY.x, local), (_LATENCY.x + _LATENCY.width, local)], INK, 1.5))
    text = f"device only, {decision.local.latency * 1e3:.1f} ms"
    drawing.add(Text(_LATENCY.x + _LATENCY.width, local - 6, text, 12, INK, "end"))
    chosen = decision.chosen
    if not chosen.local and chosen.split.end == last:
        at = across(chosen.split.start), down(chosen.latency)
        drawing.add(Dot(*at, 8, INK), Dot(*at, 5.5, "#ffffff"), Dot(*at, 3.5, INK))


def _bytes(drawing: Drawing, costs: Costs, wires: Sequence[Wire], across: Across, last: int) -> None:
    """By powers of ten: early tensors are a hundred times as large as late ones."""
    sizes = {w: [max(1, sum(t.nbytes for t in costs.points[at].sent(w))) for at in range(last)] for w in wires}
    every_size = [size for own in sizes.values() for size in own]
    low, high = math.floor(math.log10(min(every_size))), math.ceil(math.log10(max(every_size) + 1))
    low = min(low, high - 1)
    drawing.add(Text(_BYTES.x, _BYTES.y - 18, "What crosses there", 15, INK, bold=True))
    bottom = _BYTES.y + _BYTES.height

    def tall(size: float) -> float:
        return _BYTES.height * (math.log10(size) - low) / (high - low)

    for power in range(low, high + 1):
        y = bottom - tall(10**power)
        drawing.add(Line([(_BYTES.x, y), (_BYTES.x + _BYTES.width, y)], FAINT if power == low else GRID))
        drawing.add(Text(_BYTES.x - 8, y + 4, _size(10**power), 11, FAINT, "end"))
    width = max(1.0, 0.8 * (across(1) - across(0)) / len(wires))
    for (at_wire, (wire, own)), color in zip(enumerate(sizes.items()), COLORS, strict=False):
        for at, size in enumerate(own):
            left = across(at) + (at_wire - len(wires) / 2) * width
            label = f"{costs.points[at].name} as {wire}: {size:,} bytes"
            drawing.add(Box(left, bottom - tall(size), width, tall(size), color, label))
    for at in range(0, last, -(-last // _LABELS)):
        name = costs.points[at].name
        short = name if len(name) <= 22 else f"{name[:12]}...{name[-7:]}"
        drawing.add(Text(across(at) + 4, bottom + 8, short, 10, FAINT, "end", up=True))


def _size(size: int) -> str:
    return f"{size // 10**6} MB" if size >= 10**6 else f"{size // 10**3} kB" if size >= 10**3 else f"{size} B"
