"""`zmq-offload status`: show the state of a broker, once or again and again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from zmq_offload.cli.connections import client_facts, connections
from zmq_offload.common.units import age_text, gpu_text, size_text, time_text
from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import add_frontend, add_option, seconds
from zmq_offload.console.tables import Column, Facts, Part, Table, show


def add_options(parser: Parser) -> None:
    parser.description = (
        "Show a broker's workers, models and queues, and the requests that it served and failed; of several brokers "
        "the sums."
    )
    parser.set_example("zmq-offload status", "zmq-offload status --broker tcp://edge-1:5555 --watch 5")
    add_frontend(parser)
    parser.add_argument("--json", action="store_true", help="print the whole status as JSON; one line a look")
    parser.add_argument(
        "--watch", nargs="?", type=seconds, const=2.0, help="look again every so many seconds (2)", metavar="S"
    )
    add_option(parser, "--timeout", seconds, 5.0, "maximum seconds to wait for the broker", metavar="S")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from zmq_offload.cli.brokers import Brokers

    with Brokers(args.broker, args.timeout) as brokers:
        status = brokers.status()
        if args.watch:
            from zmq_offload.cli.watching import watch

            watch(brokers, status, args.watch, as_json=args.json)
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        show(*describe(status))
    return 0


def describe(status: dict[str, Any], before: dict[str, Any] | None = None, elapsed: float = 0.0) -> list[Part]:
    """A status (see docs/operations.md) for a person, with rates since an earlier one if there is one."""
    requests = status["requests"]
    failed, refused = (sum(requests[what].values()) for what in ("failed", "refused"))
    rate = _rate(requests["served"], before["requests"]["served"] if before else None, elapsed)
    brokers, up = status.get("brokers"), f"up {age_text(status['uptime'])}{', stopping' if status['stopping'] else ''}"
    facts = [
        ("broker", up) if brokers is None else ("brokers", f"{_answering(brokers)}, {up}"),
        (
            "requests",
            f"{requests['served']:,} served{f' ({rate} per s)' if rate else ''}, {failed} failed, {refused} refused, "
            f"{requests['outstanding']} outstanding, {requests['queued']} queued "
            f"({size_text(requests['queued_bytes'])})",
        ),
    ]
    wrong = range(len(facts), len(facts) + len(requests["failed"]) + len(requests["refused"]))
    for what in ("failed", "refused"):
        facts += [(f"  {what}", f"{' ' * (8 - len(what))}{code}: {count}") for code, count in requests[what].items()]
    dropped = ", ".join(f"{count} {name}" for name, count in status["dropped"].items())
    facts += [
        ("workers", f"{status['lost_workers']} lost, {requests['retried']} attempts repeated"),
        ("dropped", dropped),
        *client_facts(status),
    ]
    models = [
        m
        | {
            "latest": _latest(m, status["models"]),
            "labels": ", ".join(m.get("labels", ())),
            "canary": _canary(m.get("canary")),
        }
        for m in status["models"]
    ]
    parts: list[Part] = [Facts(facts, wrong=wrong), ""]
    if brokers is not None:
        parts += [_table("brokers", [_broker(each) for each in brokers], _BROKERS), ""]
    parts.append(_table("models", models, _MODELS))
    if any("statistics" in model for model in models):
        parts += ["", _table("traffic (times: p50, p95)", _traffic(models, before, elapsed), _TRAFFIC)]
    parts += ["", _table("queues", [q | {"bytes": size_text(q["bytes"])} for q in status["queues"]], _QUEUES)]
    parts += ["", _table("workers", _workers(status["workers"], before, elapsed), _WORKERS)]
    return [*parts, *connections(status)]


def _answering(brokers: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(not each['error'] for each in brokers)} of {len(brokers)} answer"


_BROKERS = (
    Column("endpoint"),
    Column("up", right=True),
    Column("served", right=True),
    Column("outstanding", right=True),
    Column("queued", right=True),
    Column("restarts", right=True),
    Column("error", folds=True, spare=1),
)
_MODELS = (
    Column("name", shortens=True),
    Column("version", right=True),
    Column("workers", right=True),
    Column("latest", folds=True),
    Column("labels", folds=True, spare=1),
    Column("canary", folds=True, spare=2),
)
_TRAFFIC = (
    Column("model", shortens=True),
    Column("ok", right=True),
    Column("failed", right=True),
    Column("per s", right=True, spare=3),
    Column("queued", right=True),
    Column("running", right=True, spare=2),
    Column("queue", right=True, spare=7),
    Column("compute", right=True, spare=6),
    Column("total", right=True),
    Column("batch", right=True, spare=4),
    Column("in", right=True, spare=8),
    Column("out", right=True, spare=8),
)
_QUEUES = (
    Column("model", shortens=True),
    Column("version", right=True),
    Column("queued", right=True),
    Column("bytes", right=True),
)
_WORKERS = (
    Column("name", shortens=True),
    Column("address", spare=4),
    Column("slots", right=True, spare=3),
    Column("outstanding", right=True, spare=1),
    Column("served", right=True),
    Column("failed", right=True),
    Column("silent", right=True, spare=2),
    Column("state"),
    Column("models", folds=True),
    Column("device", spare=6),
    Column("gpu", spare=6),
    Column("memory", right=True, spare=5),
    Column("busy", right=True, spare=7),
    Column("restarts", right=True, spare=8),
    Column("running", shortens=True, spare=9),
)
_COLORS = {"ready": "green", "quiet": "yellow", "draining": "cyan"}


def _broker(broker: Mapping[str, Any]) -> dict[str, Any]:
    up = "no" if broker["error"] else age_text(broker["uptime"])
    return {**broker, "up": up, "served": f"{broker['served']:,}"}


def _latest(model: dict[str, Any], models: list[dict[str, Any]]) -> str:
    """Whether a version is the latest of its model; for a newer one that is not, why."""
    if model.get("latest"):
        return "yes"
    latest = next((m for m in models if m["name"] == model["name"] and m.get("latest")), None)
    if latest is None or latest["version"] > model["version"] or "canary" in model:
        return ""
    workers, slots = (f"{model[what]} of {model[f'of_{what}']} {what}" for what in ("workers", "slots"))
    return f"not yet: {workers} with {slots} have it"


def _canary(trial: Mapping[str, Any] | None) -> str:
    """What a canary gets and how it does, or why it was returned."""
    if trial is None:
        return ""
    if trial["returned"]:
        return f"returned: {trial['returned']}"
    return (
        f"{trial['share']:.3g} of the requests; {trial['failed']} of {trial['requests']} failed, "
        f"of the others {trial['others_failed']} of {trial['others']}"
    )


def _rate(count: int, then: int | None, elapsed: float) -> str:
    """How fast a counter rises, or "" if that is not known. One that fell was started again."""
    return "" if then is None or count < then or elapsed <= 0 else f"{(count - then) / elapsed:,.1f}"


def _traffic(
    models: Sequence[Mapping[str, Any]], before: dict[str, Any] | None, elapsed: float
) -> list[dict[str, str]]:
    """What became of the requests of each version."""
    from zmq_offload.telemetry.histograms import Buckets

    then = {(m["name"], m["version"]): m.get("statistics") for m in before["models"]} if before else {}
    rows = []
    for model in models:
        numbers = model.get("statistics")
        if numbers is None:
            continue
        earlier = then.get((model["name"], model["version"]))
        ok = numbers["requests"].get("ok", 0)
        row = {
            "model": f"{model['name']}:{model['version']}",
            "ok": f"{ok:,}",
            "failed": f"{sum(numbers['requests'].values()) - ok:,}",
            "per s": _rate(ok, earlier and earlier["requests"].get("ok", 0), elapsed),
            "queued": f"{numbers['queued']:,}",
            "running": f"{numbers['outstanding'] - numbers['queued']:,}",
        }
        for what in ("queue", "compute", "total"):
            buckets = Buckets.of_body(numbers[what])
            row[what] = (
                f"{time_text(buckets.quantile(0.5))}, {time_text(buckets.quantile(0.95))}" if buckets.count else ""
            )
        batch = Buckets.of_body(numbers["batch"])
        row["batch"] = f"{batch.mean:.1f}" if batch.count else ""
        rows.append(row | {"in": size_text(numbers["bytes_in"]), "out": size_text(numbers["bytes_out"])})
    return rows


def _workers(
    workers: Sequence[Mapping[str, Any]], before: dict[str, Any] | None, elapsed: float
) -> list[dict[str, Any]]:
    then = {worker["name"]: worker.get("busy", 0.0) for worker in before["workers"]} if before else {}
    return [
        {
            **worker,
            "models": ", ".join(worker["models"]),
            "silent": f"{worker['silent']:.1f} s",
            "address": worker.get("address", ""),
            "device": worker.get("device", ""),
            "gpu": gpu_text(worker.get("gpu", {})) if worker.get("device", "").startswith("cuda") else "",
            "memory": size_text(worker["memory_bytes"]) if worker.get("memory_bytes") else "",
            "busy": _busy(worker, then.get(worker["name"]), elapsed),
            "restarts": worker.get("restarts", ""),
            "running": ", ".join(worker.get("running", ())),
        }
        for worker in workers
    ]


def _busy(worker: Mapping[str, Any], then: float | None, elapsed: float) -> str:
    """The share of the time since the last look that a worker computed; without a last look, for how long it did."""
    busy = worker.get("busy")
    if busy is None:
        return ""
    if then is None or busy < then or elapsed <= 0:
        return time_text(busy)
    return f"{min(1.0, (busy - then) / elapsed):.0%}"


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: tuple[Column, ...]) -> Table:
    """A table of the columns that have anything in any row, but always of those that no terminal leaves out."""
    shown = [column for column in columns if not column.spare or any(row[column.heading] != "" for row in rows)]
    cells = [[str(row[column.heading]) for column in shown] for row in rows]
    styles = {
        (number, at): style
        for number, row in enumerate(rows)
        for at, column in enumerate(shown)
        if (style := _style(column.heading, row[column.heading]))
    }
    return Table(shown, cells, title, styles=styles)


def _style(heading: str, value: object) -> str:
    if heading == "state":
        return _COLORS.get(str(value), "")
    wrong = (heading == "failed" and str(value) != "0") or (heading == "canary" and str(value).startswith("returned"))
    return "red" if wrong else ""
