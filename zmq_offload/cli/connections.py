"""The connections of a broker, as `zmq-offload status` shows them: who shares memory, how much, and why not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from zmq_offload.common.units import counted, size_text
from zmq_offload.console.tables import Column, Part, Table

_MOST_CLIENTS = 20
"""Lines of clients that are shown. `--json` has more."""

_COLUMNS = (
    Column("peer", shortens=True),
    Column("address", spare=2),
    Column("transport", spare=1),
    Column("shares memory"),
    Column("lent", right=True),
    Column("taken", right=True, spare=4),
    Column("of", right=True, spare=5),
    Column("mapped", right=True, spare=3),
)
_NO_ARENA = 4096
"""Bytes of the smallest arena, which a process has that lends nothing: its tables take more."""

_SIZES = ("lent_bytes", "taken_bytes", "arena_bytes", "mapped_bytes")


def client_facts(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many clients there are. Nothing if the broker does not tell."""
    clients = status.get("clients")
    if clients is None:
        return []
    return [("clients", f"{clients['connected']:,} connected, {clients['sharing']:,} of them sharing memory")]


def connections(status: Mapping[str, Any]) -> list[Part]:
    """The connections of workers and clients. Nothing if the broker does not tell of any."""
    workers = [worker for worker in status["workers"] if "transport" in worker]
    clients = status.get("clients", {}).get("listed", [])
    rows = [_row(f"worker {worker['name']}", worker) for worker in workers]
    rows += [_row(_name(client), client) for client in clients[:_MOST_CLIENTS]]
    if not rows:
        return []
    if "shared_memory" in status:
        rows.insert(0, _row("this broker", {"address": "", "transport": "", "shared_memory": _own(status)}))
    left = sum(client["connections"] for client in clients[_MOST_CLIENTS:])
    parts: list[Part] = ["", Table(_COLUMNS, rows, "connections")]
    return [*parts, f"  and {counted(left, 'client')} more: see --json"] if left else parts


def _own(status: Mapping[str, Any]) -> dict[str, Any]:
    """A broker that lends nothing has no limit: what it has taken are tables."""
    shared: dict[str, Any] = status["shared_memory"]
    if shared["arena_bytes"] > _NO_ARENA:
        return shared
    return {key: value for key, value in shared.items() if key not in ("lent_bytes", "arena_bytes")}


def _name(client: Mapping[str, Any]) -> str:
    count, process = client["connections"], client["process"]
    if process == os.getpid():  # a process is only known on the broker's host
        return "this command"
    return ("client" if count == 1 else f"{count} clients") + (f", process {process}" if process else "")


def _row(name: str, peer: Mapping[str, Any]) -> list[str]:
    shared = peer["shared_memory"]
    sizes = [size_text(shared[key]) if key in shared else "" for key in _SIZES]
    return [name, peer["address"], peer["transport"], f"no: {shared['why']}" if "why" in shared else "yes", *sizes]
