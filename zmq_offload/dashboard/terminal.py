"""What `zmq-offload top` needs besides the history: small charts of characters, and rows for a low terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from zmq_offload.dashboard.history import View
from zmq_offload.dashboard.series import Point

_LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last `width` values as characters, the highest one full. What is not known is a space."""
    shown = list(values)[-width:] if width > 0 else []
    top = max((value for value in shown if value is not None), default=0.0)
    return "".join(" " if value is None else _level(value, top) for value in shown)


def _level(value: float, top: float) -> str:
    if top <= 0 or value <= 0:
        return _LEVELS[0]
    return _LEVELS[min(len(_LEVELS) - 1, int(value / top * len(_LEVELS)))]


def by_step(points: Sequence[Point], now: float, width: int) -> list[Point | None]:
    """The points of the last `width` steps, with None for those in which nothing was known."""
    found = {point.number: point for point in points}
    last = int(now)
    return [found.get(number) for number in range(last - width + 1, last + 1)]


def share(room: int, wanted: Sequence[int]) -> list[int]:
    """Divide `room` rows among sections that want so many: one to each in turn, until all have theirs or none is left.

    Sections at the beginning are preferred.
    """
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        for at, want in enumerate(wanted):
            if given[at] < want and room > 0:
                given[at] += 1
                room -= 1
    return given


def bar(parts: Sequence[float], width: int) -> list[int]:
    """Divide a bar of `width` characters by the sizes of its parts. Rounding never makes it longer or shorter."""
    whole = sum(parts)
    if whole <= 0:
        return [0] * len(parts)
    edges = [round(sum(parts[: at + 1]) / whole * width) for at in range(len(parts))]
    return [edge - before for edge, before in zip(edges, [0, *edges], strict=False)]


def sorted_view(view: View, by_load: bool) -> View:
    """The view with models and workers by name, or the busiest ones first."""
    if not by_load:
        return view
    models = sorted(view.models, key=lambda model: (-model.rates.requests, -model.queued, model.name, model.version))
    workers = sorted(view.workers, key=lambda worker: (-(worker.busy or 0.0), -worker.outstanding, worker.name))
    return View(**{name: getattr(view, name) for name in View.__dataclass_fields__} | {
        "models": models, "workers": workers,
    })  # fmt: skip
