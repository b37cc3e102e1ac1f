"""What `zmq-offload top` shows of a view: lines for a terminal of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from zmq_offload.common.units import age_text, gpu_text, size_text, time_text
from zmq_offload.console.tables import GAP, Column, Table, aligned, padded
from zmq_offload.dashboard.history import ErrorView, ModelView, SlowView, View
from zmq_offload.dashboard.roster import LOST, WorkerView
from zmq_offload.dashboard.terminal import bar, by_step, share, sparkline
from zmq_offload.errors import printable

if TYPE_CHECKING:
    from rich.text import Text

_STATES = {"ready": "green", "quiet": "yellow", "draining": "cyan", LOST: "bold red"}
_BROKER = {"up": "green", "waiting": "yellow", "stopping": "yellow", "none": "bold red"}

_MODELS = (
    Column("models", shortens=True),
    Column("latest", shortens=True, spare=3),
    Column("workers", right=True, spare=1),
    Column("per s", right=True),
    Column("errors", right=True),
    Column("p50", right=True, spare=2),
    Column("p95", right=True),
    Column("p99", right=True, spare=4),
    Column("queued", right=True),
    Column("running", right=True, spare=5),
    Column("batch", right=True, spare=6),
)
_WORKERS = (
    Column("workers", shortens=True),
    Column("state"),
    Column("busy", right=True),
    Column("holds", right=True),
    Column("runs", shortens=True),
    Column("served", right=True, spare=1),
    Column("failed", right=True, spare=2),
    Column("memory", right=True, spare=3),
    Column("restarts", right=True, spare=5),
    Column("device", spare=6),
    Column("gpu", spare=6),
    Column("address", spare=7),
)
_ERRORS = (Column("errors"), Column("kind"), Column("last hour", right=True), Column("all", right=True))
_SLOW = (
    Column("slow requests", shortens=True),
    Column("ago", right=True),
    Column("total", right=True),
    Column("queue", right=True),
    Column("compute", right=True),
    Column("queue / compute / other"),
    Column("status", spare=1),
    Column("attempts", right=True, spare=3),
    Column("worker", shortens=True, spare=2),
)

_BAR = 23
"""Characters of the bar of a slow request."""

_LABEL = 10


def screen(view: View, endpoint: str, keys: str, width: int, height: int) -> Text:
    """All lines, at most `height` of at most `width` characters."""
    from rich.text import Text

    lines = [*_head(view, endpoint), Text()]
    sections = [_models(view.models), _workers(view.workers), _errors(view.errors), _slow(view.slow)]
    sections = [section for section in sections if section.rows]
    room = height - len(lines) - 1 - 2 * len(sections)
    for section, rows in zip(sections, share(room, [len(s.rows) for s in sections]), strict=True):
        lines += [*_section(section, rows, width), Text()]
    lines = lines[: height - 1]
    lines += [Text()] * (height - 1 - len(lines)) + [Text(keys, style="reverse")]
    for line in lines:
        line.truncate(width)
        line.no_wrap = True
    return Text("\n").join(lines)


def snapshot(view: View, endpoint: str) -> str:
    """The same as plain text, with all rows and columns."""
    lines = [line.rstrip() for line in _plain_head(view, endpoint)]
    tables = [_models(view.models), _workers(view.workers), _errors(view.errors), _slow(view.slow)]
    return "\n\n".join(["\n".join(lines), *(str(table) for table in tables if table.rows)])


def _plain_head(view: View, endpoint: str) -> list[str]:
    broker, rates = view.broker, view.rates
    state = f"no broker answers: {printable(broker.message)}" if broker.state == "none" else broker.state
    counts = ((broker.lost_workers, "workers lost"), (broker.retried, "repeated"), (broker.restarts, "restarts"))
    first = [f"{state} {age_text(broker.uptime)}", *(f"{count} {what}" for count, what in counts if count)]
    times = "  ".join(
        f"{name} {_time(value)}" for name, value in (("p50", rates.p50), ("p95", rates.p95), ("p99", rates.p99))
    )
    return [
        f"{endpoint}  {', '.join(first)}",
        f"{rates.requests:,.1f}/s  {rates.errors:,.1f} errors/s  {times}  {view.queued} queued  "
        f"{max(0, view.outstanding - view.queued)} running",
    ]


def _head(view: View, endpoint: str) -> list[Text]:
    from rich.text import Text

    first, second = _plain_head(view, endpoint)
    begin, _, rest = first.partition("  ")
    title = Text.assemble((begin, "bold"), "  ", (rest, _BROKER[view.broker.state]))
    charts: list[tuple[str, Callable[[object], float | None], Callable[[float], str]]] = [
        ("requests", lambda point: getattr(point, "requests", None), lambda top: f"{top:,.0f}/s"),
        ("p95", lambda point: getattr(point, "p95", None), time_text),
        ("queued", lambda point: getattr(point, "queued", None), lambda top: f"{top:,.0f}"),
    ]
    lines = [title, Text(second)]
    points = by_step(view.points, view.now, 56)
    for label, value, text in charts:
        values = [value(point) for point in points]
        known = [each for each in values if each is not None]
        most = text(max(known)) if known else "-"
        chart = sparkline(values, len(values))
        lines.append(Text.assemble((f"{label:<{_LABEL}}", "cyan"), (chart, "green"), f"  max {most}"))
    return lines


def _section(table: Table, rows: int, width: int) -> list[Text]:
    """The heading of a table and its first rows, with the columns that fit."""
    from rich.text import Text

    shown, _ = table.fitted(width)
    left_out = len(table.rows) - rows
    headings = [column.heading for column in shown.columns]
    if left_out:
        headings[0] += f" (+{left_out})"
    widths = [max(width, len(heading)) for width, heading in zip(shown.widths(), headings, strict=True)]
    lines = [Text(aligned(shown.columns, widths, headings), style="bold")]
    for number, row in enumerate(shown.rows[:rows]):
        line = Text()
        for at, (column, cell) in enumerate(zip(shown.columns, row, strict=True)):
            if column.heading == "queue / compute / other":
                _append_bar(line, cell)
            else:
                line.append(padded(cell, widths[at], column.right), style=shown.styles.get((number, at), ""))
            line.append(" " * GAP)
        lines.append(line)
    return lines


_PARTS = (("q", "yellow", "queue"), ("c", "green", "compute"), ("o", "magenta", "other"))


def _append_bar(line: Text, cell: str) -> None:
    for letter, color, _ in _PARTS:
        line.append("█" * cell.count(letter), style=color)
    line.append(" " * (_BAR - len(cell)))


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else time_text(seconds)


def _models(models: Sequence[ModelView]) -> Table:
    rows, styles = [], {}
    for number, model in enumerate(models):
        rates = model.rates
        latest = [*(["latest"] if model.latest else []), *model.labels]
        rows.append(
            (
                f"{model.name}:{model.version}",
                ", ".join(latest),
                str(model.workers),
                f"{rates.requests:,.1f}",
                f"{rates.errors:,.1f}",
                _time(rates.p50),
                _time(rates.p95),
                _time(rates.p99),
                f"{model.queued:,}",
                f"{max(0, model.outstanding - model.queued):,}",
                f"{model.mean_batch:.1f}" if model.mean_batch else "-",
            )
        )
        if rates.errors:
            styles[number, 4] = "red"
        if not model.workers:
            styles[number, 2] = "bold red"
    return Table(_MODELS, rows, styles=styles)


def _workers(workers: Sequence[WorkerView]) -> Table:
    rows, styles = [], {}
    for number, worker in enumerate(workers):
        lost = worker.state == LOST
        rows.append(
            (
                worker.name,
                f"lost {age_text(worker.silent)} ago" if lost else worker.state,
                "-" if worker.busy is None else f"{worker.busy:.0%}",
                f"{worker.outstanding}/{worker.slots}",
                ", ".join(worker.running) or "-",
                f"{worker.served:,}",
                f"{worker.failed:,}",
                size_text(worker.memory_bytes) if worker.memory_bytes else "-",
                str(worker.restarts),
                worker.device or "-",
                gpu_text(worker.gpu) if worker.gpu else "-",
                worker.address or "-",
            )
        )
        styles[number, 1] = _STATES.get(worker.state, "")
        if lost:
            styles[number, 0] = _STATES[LOST]
        if worker.failed:
            styles[number, 6] = "red"
    return Table(_WORKERS, rows, styles=styles)


def _errors(errors: Sequence[ErrorView]) -> Table:
    rows = [(error.code, error.kind, f"{error.hour:,}", f"{error.count:,}") for error in errors]
    return Table(_ERRORS, rows, styles={(number, 0): "red" for number in range(len(rows))})


def _slow(slow: Sequence[SlowView]) -> Table:
    rows, styles = [], {}
    for number, request in enumerate(sorted(slow, key=lambda each: each.ago)):
        other = max(0.0, request.total - request.queue - request.compute)
        lengths = bar((request.queue, request.compute, other), _BAR)
        rows.append(
            (
                f"{request.model}:{request.version}",
                age_text(request.ago),
                time_text(request.total),
                time_text(request.queue),
                time_text(request.compute),
                "".join(letter * length for (letter, _, _), length in zip(_PARTS, lengths, strict=True)),
                request.status,
                str(request.attempts),
                request.worker,
            )
        )
        if request.status != "ok":
            styles[number, 6] = "red"
    return Table(_SLOW, rows, styles=styles)
