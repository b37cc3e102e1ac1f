"""`zmq-offload status`: what a broker says of itself."""

from __future__ import annotations

import argparse
import json
from typing import Any

from zmq_offload.console.settings import add_frontend, add_option, seconds


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "status",
        help="show a broker's workers, models, queues and requests",
        description="Show a broker's workers, models, queues, and the requests served and failed.",
    )
    add_frontend(parser)
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    add_option(parser, "--timeout", seconds, 5.0, "seconds to wait for the broker", metavar="S")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from zmq_offload.client.sync import Client

    with Client(args.broker, timeout=args.timeout) as client:
        status = client.status()
    print(json.dumps(status, indent=2) if args.json else describe(status))
    return 0


def describe(status: dict[str, Any]) -> str:
    """A status (see docs/operations.md) for a person."""
    requests = status["requests"]
    lines = [
        f"broker   up {status['uptime']:.0f} s{', stopping' if status['stopping'] else ''}",
        f"requests {requests['served']} served, {_total(requests['failed'])} failed, "
        f"{_total(requests['refused'])} refused, {requests['outstanding']} outstanding, "
        f"{requests['queued']} queued ({requests['queued_bytes']:,} bytes)",
    ]
    for what in ("failed", "refused"):
        lines += [f"  {what:8} {code}: {count}" for code, count in requests[what].items()]
    dropped = ", ".join(f"{count} {name}" for name, count in status["dropped"].items())
    lines += [
        f"workers  {status['lost_workers']} lost, {requests['retried']} attempts repeated for it",
        f"dropped  {dropped}",
    ]
    models = [m | {"latest": _latest(m, status["models"])} for m in status["models"]]
    lines += ["", *_table("models", models, ("name", "version", "workers", "latest"))]
    lines += ["", *_table("queues", status["queues"], ("model", "version", "queued", "bytes"))]
    workers = [
        w | {"models": ", ".join(w["models"]), "silent": f"{w['silent']:.1f} s", "address": w.get("address", "")}
        for w in status["workers"]
    ]
    columns = ("name", "address", "slots", "outstanding", "served", "failed", "silent", "state", "models")
    return "\n".join([*lines, "", *_table("workers", workers, columns)])


def _latest(model: dict[str, Any], models: list[dict[str, Any]]) -> str:
    """Whether a version is the latest of its model, and if it is newer than that, why not."""
    if model.get("latest"):
        return "yes"
    latest = next((m for m in models if m["name"] == model["name"] and m.get("latest")), None)
    if latest is None or latest["version"] > model["version"]:
        return ""
    workers, slots = (f"{model[what]} of {model[f'of_{what}']} {what}" for what in ("workers", "slots"))
    return f"not yet: {workers} with {slots} have it"


def _total(by_code: dict[str, int]) -> int:
    return sum(by_code.values())


def _table(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> list[str]:
    if not rows:
        return [f"{title}: none"]
    cells = [columns, *(tuple(str(row[column]) for column in columns) for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [f"{title}:", *(f"  {line}" for line in lines)]
