"""Successive frames on their way, as a picture: which stage is busy with which frame when."""

from __future__ import annotations

from collections.abc import Sequence

from zmq_offload.charts.chart import COLORS, FAINT, GRID, INK, number, ticks
from zmq_offload.charts.draw import Box, Drawing, Line, Text
from zmq_offload.plan.costs import Network, message_bytes
from zmq_offload.plan.slow import Seen

WIDTH, LEFT, TOP, LANE, BAR = 1200, 150, 96, 74, 40
LANES = ("device", "uplink", "server", "downlink")
SHOWN = 10
"""Frames, from the middle of the run."""


def spans(seen: Seen, link: Network) -> dict[str, tuple[float, float]]:
    """Begin and end of a frame's stages by the device's clock.

    The device's stage and the request are measured here; how long the broker had it, and how long the worker computed,
    they say. When the broker sent the answer follows from the link: so long ago as the answer takes on it. The rest of
    the request is the uplink, with waiting for it.
    """
    left = seen.received - link.transfer(message_bytes(seen.answered, answer=True))
    arrived = max(seen.sent, left - seen.timings.broker)
    return {
        "device": (seen.began, seen.ended),
        "uplink": (seen.sent, arrived),
        "server": (left - seen.timings.compute, left),
        "downlink": (left, seen.received),
    }


def draw(seen: Sequence[Seen], link: Network, title: str) -> Drawing:
    """A lane for each stage, a colour for each frame; in a lane of the wire, where frames may follow each other while
    others are under way, every second frame is lower."""
    first = max(0, len(seen) // 2 - SHOWN // 2)
    frames = [(first + at, spans(s, link)) for at, s in enumerate(seen[first : first + SHOWN])]
    drawing = Drawing(WIDTH, TOP + LANE * len(LANES) + 70)
    drawing.add(Text(LEFT, 36, title, 18, INK, bold=True))
    drawing.add(
        Text(
            LEFT,
            60,
            "Each colour is one frame, its number in the box; what stands above each other, overlaps.",
            13,
            FAINT,
        )
    )
    if not frames:
        return drawing
    zero = min(own["device"][0] for _, own in frames)
    marks = ticks(1e3 * (max(own["downlink"][1] for _, own in frames) - zero), 12)
    width = WIDTH - LEFT - 30
    bottom = TOP + LANE * len(LANES)

    def x(seconds: float) -> float:
        return LEFT + width * 1e3 * (seconds - zero) / marks[-1]

    for mark in marks:
        at = LEFT + width * mark / marks[-1]
        drawing.add(Line([(at, TOP), (at, bottom)], GRID), Text(at, bottom + 18, number(mark), 11, FAINT, "middle"))
    drawing.add(Text(LEFT + width / 2, bottom + 42, "ms", 12, FAINT, "middle"))
    for lane, name in enumerate(LANES):
        top = TOP + lane * LANE
        drawing.add(Text(LEFT - 14, top + LANE / 2 + 4, name, 15, INK, "end", bold=True))
        drawing.add(Line([(LEFT, top + LANE), (LEFT + width, top + LANE)], GRID))
        wire = name in ("uplink", "downlink")
        for frame, own in frames:
            begin, end = own[name]
            height = BAR * 0.62 if wire else BAR
            y = top + (LANE - BAR) / 2 + (BAR * 0.7 * (frame % 2) - 4 if wire else 0)
            wide = max(2.0, x(end) - x(begin) - 1)
            text = f"frame {frame}, {name}: {(end - begin) * 1e3:.2f} ms"
            drawing.add(Box(x(begin), y, wide, height, COLORS[frame % len(COLORS)], text))
            if wide > 24:
                drawing.add(
                    Text(x(begin) + wide / 2, y + height / 2 + 4, str(frame), 12, "#ffffff", "middle", bold=True)
                )
    return drawing
