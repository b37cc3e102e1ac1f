"""A plan as a picture: the latency of a cut at each place, and the bytes that cross there."""

from __future__ import annotations

from collections.abc import Sequence

from zmq_offload.loadgen.chart import COLORS, FAINT, INK, Panel, frame, legend, number, ticks
from zmq_offload.loadgen.draw import Box, Dot, Drawing, Line, Text
from zmq_offload.plan.costs import Costs, Prediction, Split, Wire
from zmq_offload.plan.search import Decision

WIDTH, HEIGHT = 1100, 760
_LATENCY = Panel(90, 96, 960, 300)
_BYTES = Panel(90, 456, 960, 130)
_LABELS = 48
"""More names than that do not stand beside each other."""


def draw(costs: Costs, decision: Decision, wires: Sequence[Wire], title: str) -> Drawing:
    """Cuts whose rest runs on the server, in graph order; `decision` has the choice and what is not allowed is left
    out of the lines."""
    drawing = Drawing(WIDTH, HEIGHT)
    drawing.add(Text(_LATENCY.x, 36, title, 18, INK, bold=True))
    last = len(costs.places) - 1
    allowed = {p.split: p for p in decision.ranking}
    curves = {w: [allowed.get(Split(at, last, w)) for at in range(last)] for w in wires}
    shown = [p.latency for curve in curves.values() for p in curve if p is not None]
    y_ticks = ticks(1e3 * max([*shown, decision.local.latency]))
    frame(drawing, _LATENCY, "Latency of a cut at each place", "ms", y_ticks)
    legend(drawing, _LATENCY, list(wires))
    step = _LATENCY.width / max(1, last)

    def x(at: int) -> float:
        return _LATENCY.x + (at + 0.5) * step

    def y(milliseconds: float) -> float:
        return _LATENCY.y + _LATENCY.height * (1 - milliseconds / y_ticks[-1])

    local = y(1e3 * decision.local.latency)
    drawing.add(Line([(_LATENCY.x, local), (_LATENCY.x + _LATENCY.width, local)], INK, 1.5))
    text = f"device only, {decision.local.latency * 1e3:.1f} ms"
    drawing.add(Text(_LATENCY.x + _LATENCY.width, local - 6, text, 12, INK, "end"))
    for (wire, curve), color in zip(curves.items(), COLORS, strict=False):
        points = [(x(at), y(1e3 * p.latency), p) for at, p in enumerate(curve) if p is not None]
        drawing.add(Line([(px, py) for px, py, _ in points], color, 2))
        drawing.add(*(Dot(px, py, 3, color, f"{wire}: {p.latency * 1e3:.2f} ms") for px, py, p in points))
    _mark(drawing, decision.chosen, last, x, y)
    _bytes(drawing, costs, wires, x, step, last)
    return drawing


def _mark(drawing: Drawing, chosen: Prediction, last: int, x, y) -> None:  # type: ignore[no-untyped-def]
    """A ring around the choice, where it is on one of the lines."""
    if chosen.local or chosen.split.end != last:
        return
    at = x(chosen.split.start), y(1e3 * chosen.latency)
    drawing.add(Dot(*at, 7, INK), Dot(*at, 4.5, "#ffffff"), Dot(*at, 3, INK))
    drawing.add(Text(at[0], at[1] - 14, f"chosen: {chosen.latency * 1e3:.1f} ms", 12, INK, "middle", bold=True))


def _bytes(drawing: Drawing, costs: Costs, wires: Sequence[Wire], x, step: float, last: int) -> None:  # type: ignore[no-untyped-def]
    sizes = {w: [sum(t.nbytes for t in costs.places[at].sent(w)) / 1e3 for at in range(last)] for w in wires}
    y_ticks = ticks(max(max(own) for own in sizes.values()), 3)
    frame(drawing, _BYTES, "What crosses there", "kB", y_ticks)
    bottom, width = _BYTES.y + _BYTES.height, max(1.0, 0.8 * step / len(wires))
    for number_of, (wire, own) in enumerate(sizes.items()):
        for at, size in enumerate(own):
            height = _BYTES.height * size / y_ticks[-1]
            left = x(at) + (number_of - len(wires) / 2) * width
            label = f"{costs.places[at].name} as {wire}: {number(size)} kB"
            drawing.add(Box(left, bottom - height, width, height, COLORS[number_of], label))
    every = -(-last // _LABELS)
    for at in range(0, last, every):
        name = costs.places[at].name
        short = name if len(name) <= 22 else f"{name[:12]}...{name[-7:]}"
        drawing.add(Text(x(at) + 4, bottom + 8, short, 10, FAINT, "end", up=True))
