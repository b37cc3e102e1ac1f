"""`zmq-offload status`: show the state of a broker."""

from __future__ import annotations

import argparse
import json
from typing import Any

from zmq_offload.console.parser import Parser
from zmq_offload.console.settings import add_frontend, add_option, seconds
from zmq_offload.console.tables import Column, Facts, Part, Table, show


def add_options(parser: Parser) -> None:
    parser.description = "Show a broker's workers, models and queues, and the requests that it served and failed."
    parser.set_example("zmq-offload status", "zmq-offload status --broker tcp://broker.example:5555 --json")
    add_frontend(parser)
    parser.add_argument("--json", action="store_true", help="print the whole status as JSON")
    add_option(parser, "--timeout", seconds, 5.0, "maximum seconds to wait for the broker", metavar="S")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from zmq_offload.client.sync import Client

    with Client(args.broker, timeout=args.timeout) as client:
        status = client.status()
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        show(*describe(status))
    return 0


def describe(status: dict[str, Any]) -> list[Part]:
    """A status (see docs/operations.md) for a person."""
    requests = status["requests"]
    facts = [
        ("broker", f"up {status['uptime']:.0f} s{', stopping' if status['stopping'] else ''}"),
        (
            "requests",
            f"{requests['served']} served, {_total(requests['failed'])} failed, {_total(requests['refused'])} refused, "
            f"{requests['outstanding']} outstanding, {requests['queued']} queued ({requests['queued_bytes']:,} bytes)",
        ),
    ]
    for what in ("failed", "refused"):
        facts += [(f"  {what}", f"{' ' * (8 - len(what))}{code}: {count}") for code, count in requests[what].items()]
    dropped = ", ".join(f"{count} {name}" for name, count in status["dropped"].items())
    facts += [
        ("workers", f"{status['lost_workers']} lost, {requests['retried']} attempts repeated"),
        ("dropped", dropped),
    ]
    models = [m | {"latest": _latest(m, status["models"])} for m in status["models"]]
    workers = [
        w | {"models": ", ".join(w["models"]), "silent": f"{w['silent']:.1f} s", "address": w.get("address", "")}
        for w in status["workers"]
    ]
    return [
        Facts(facts),
        "",
        _table("models", models, _MODELS),
        "",
        _table("queues", status["queues"], _QUEUES),
        "",
        _table("workers", workers, _WORKERS),
    ]


_MODELS = (Column("name"), Column("version"), Column("workers"), Column("latest", folds=True))
_QUEUES = tuple(map(Column, ("model", "version", "queued", "bytes")))
_WORKERS = (
    Column("name"),
    Column("address", spare=4),
    Column("slots", spare=3),
    Column("outstanding", spare=1),
    Column("served"),
    Column("failed"),
    Column("silent", spare=2),
    Column("state"),
    Column("models", folds=True),
)


def _latest(model: dict[str, Any], models: list[dict[str, Any]]) -> str:
    """Whether a version is the latest of its model; for a newer one that is not, why."""
    if model.get("latest"):
        return "yes"
    latest = next((m for m in models if m["name"] == model["name"] and m.get("latest")), None)
    if latest is None or latest["version"] > model["version"]:
        return ""
    workers, slots = (f"{model[what]} of {model[f'of_{what}']} {what}" for what in ("workers", "slots"))
    return f"not yet: {workers} with {slots} have it"


def _total(by_code: dict[str, int]) -> int:
    return sum(by_code.values())


def _table(title: str, rows: list[dict[str, Any]], columns: tuple[Column, ...]) -> Table:
    return Table(columns, [[str(row[column.heading]) for column in columns] for row in rows], title)
