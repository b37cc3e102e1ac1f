"""The results of a load test as rows of a table, CSV, JSON, a picture and an interactive page."""

from __future__ import annotations

import csv as csvlib
import datetime
import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from zmq_offload.charts import load, style
from zmq_offload.common.extras import needs
from zmq_offload.console.tables import Column
from zmq_offload.loadgen.levels import Level
from zmq_offload.loadgen.sender import MISMATCH
from zmq_offload.loadgen.stats import LATENCIES, PARTS, Summary


@dataclass(frozen=True)
class Report:
    """`setting` says how it was measured."""

    title: str
    setting: str
    summaries: Sequence[Summary]


def wrong(summary: Summary) -> bool:
    """Whether an output differed from the expected one."""
    return MISMATCH in summary.errors


UNITS = "latencies and their parts (client, queue, compute, network) in ms"

MARKS = {
    "*": "windows did not agree within 10 %; all but the first are counted",
    "+": "the sender did not reach the rate, so this level says little about the fabric; use more --processes",
}


def marks(summary: Summary) -> str:
    """The marks after a level's name; `MARKS` says what they mean."""
    return f"{'' if summary.stable else '*'}{'+' if summary.short else ''}"


def columns(levels: Sequence[Level]) -> tuple[list[Column], list[int]]:
    """The columns of the table for a person, and their widths: rows are printed as levels end."""
    heading = "rate" if levels[0].rate else "in flight"
    made = [Column(heading), Column("requests/s", right=True)]
    made += [Column(name, right=True, spare=_SPARE.get(name, 0)) for name in (*LATENCIES, *PARTS)]
    made.append(Column("errors", right=True))
    widths = [max(len(heading), *(len(_name(level)) + 3 for level in levels))]
    return made, [*widths, *(max(6, len(column.heading)) for column in made[1:])]


def row(s: Summary) -> list[str]:
    """A level's cells under `columns`; times in milliseconds."""
    times = (*s.latency.values(), *s.parts.values())
    name = f"{_name(s.level)} {marks(s)}".rstrip()
    return [name, f"{s.throughput:,.1f}", *map(_ms, times), f"{sum(s.errors.values()):,}"]


_SPARE = {"p90": 3, "max": 2, "p95": 1}
"""Latencies to leave out on a narrow terminal."""


def _name(level: Level) -> str:
    return str(level) if level.rate else str(level.concurrency)


def notes(summaries: Sequence[Summary]) -> list[str]:
    """The meaning of the marks in a table, and the rates of senders that fell short."""
    used = {mark for s in summaries for mark in marks(s)}
    lines = [f"{mark} {text}" for mark, text in MARKS.items() if mark in used]
    lines += [f"  {s.level}: {s.sent:,.1f}/s were sent" for s in summaries if s.short]
    return lines + [
        f"  {s.level}: no request ended within the level; use a longer --duration"
        for s in summaries
        if not s.requests and not s.errors
    ]


def error_lines(summaries: Sequence[Summary]) -> list[str]:
    """Each error code with its count and its first message."""
    return [
        f"{s.level}: {count} x {code}: {s.texts[code]}" for s in summaries for code, count in sorted(s.errors.items())
    ]


def csv(path: Path, report: Report) -> None:
    rows = [summary.row() for summary in report.summaries]
    codes = sorted({code for summary in report.summaries for code in summary.errors})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csvlib.DictWriter(file, [*rows[0], *codes])
        writer.writeheader()
        for row, summary in zip(rows, report.summaries, strict=True):
            writer.writerow(row | {code: summary.errors.get(code, 0) for code in codes})


def as_json(path: Path, report: Report) -> None:
    levels: list[dict[str, object]] = [
        {
            "concurrency": s.level.concurrency or None,
            "rate": s.level.rate or None,
            "stable": s.stable,
            "seconds": s.seconds,
            "requests": s.requests,
            "throughput": s.throughput,
            "latency_ms": _finite(s.latency),
            "parts_ms": _finite(s.parts),
            "errors": s.errors,
            "sent": s.sent if s.level.rate else None,
            "short": s.short,
            "error_texts": s.texts,
        }
        for s in report.summaries
    ]
    content = {"title": report.title, "setting": report.setting, "levels": levels}
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def check_charts(kinds: Collection[str]) -> None:
    """Raises FailedPrecondition if a package is missing that draws one of these outputs."""
    with needs("load"):
        if "png" in kinds:
            import matplotlib  # noqa: F401
        if "html" in kinds:
            import plotly  # noqa: F401


def png(path: Path, report: Report) -> None:
    style.save(load.draw(chart(report)), path)


def html(path: Path, report: Report) -> None:
    """One file that needs no other file and no network."""
    head = ("Load", "Requests/s", *(name for name in report.summaries[0].latency), *PARTS, "Requests", "Errors")
    rows = [
        (
            f"{s.level} {marks(s)}".rstrip(),
            f"{s.throughput:,.1f}",
            *(_ms(value) for value in (*s.latency.values(), *s.parts.values())),
            f"{s.requests:,}",
            f"{sum(s.errors.values()):,}",
        )
        for s in report.summaries
    ]
    cells = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    errors = "".join(f"<li>{escape(line)}</li>" for line in error_lines(report.summaries))
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    path.write_text(
        _PAGE.format(
            title=escape(report.title),
            setting=escape(report.setting),
            charts=load.interactive_html(chart(report)),
            head="".join(f"<th>{escape(name)}</th>" for name in head),
            rows=cells,
            marks=escape(". ".join(notes(report.summaries))),
            errors=f"<h2>Errors</h2><ul>{errors}</ul>" if errors else "",
            when=now,
        ),
        encoding="utf-8",
    )


WRITERS: dict[str, Callable[[Path, Report], None]] = {"csv": csv, "json": as_json, "png": png, "html": html}


def chart(report: Report) -> load.LoadChart:
    """The numbers of a report for its charts."""
    summaries = report.summaries
    return load.LoadChart(
        report.title,
        report.setting,
        "requests begun a second" if summaries[0].level.rate else "requests in flight",
        [f"{s.level.rate or s.level.concurrency:,.10g}" for s in summaries],
        [s.throughput for s in summaries],
        {name: [s.latency[name] for s in summaries] for name in ("p50", "p95", "p99")},
        {name: [s.parts[name] for s in summaries] for name in PARTS},
    )


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if math.isfinite(value) else "-"


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 2rem auto; max-width: 1040px; padding: 0 1rem; color: #1f2937; background: #fff;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
h1 {{ font-size: 1.4rem; margin-bottom: 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #e5e7eb; }}
th:first-child, td:first-child {{ text-align: left; }}
h2 {{ font-size: 1.05rem; margin-top: 2rem; }}
footer, .note {{ color: #6b7280; font-size: .85rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="note">{setting}</p>
{charts}
<h2>All figures</h2>
<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
<p class="note">Times in milliseconds. Client, queue, compute and network are means, and their sum is the mean latency:
the client and the way to the broker, the queue in the broker, computing in the worker, and the way between broker and
worker. {marks}</p>
{errors}
<footer>Measured by zmq-offload load, {when}.</footer>
</body>
</html>
"""
