"""Statuses of a broker, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

BOUNDS = [0.001, 0.01, 0.1]


def status(
    uptime: float = 10.0,
    *,
    served: int = 0,
    failed: dict[str, int] | None = None,
    queued: int = 0,
    models: list[dict[str, Any]] | None = None,
    workers: list[dict[str, Any]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A broker's status."""
    return {
        "uptime": uptime,
        "stopping": False,
        "requests": {
            "accepted": served,
            "outstanding": queued,
            "queued": queued,
            "queued_bytes": 0,
            "served": served,
            "failed": failed or {},
            "refused": {},
            "retried": 0,
        },
        "dropped": {"late": 0},
        "lost_workers": 0,
        "models": models or [],
        "queues": [],
        "workers": workers or [],
        **more,
    }


def model(name: str = "echo", version: int = 1, *, counts: list[int] | None = None, **more: Any) -> dict[str, Any]:
    """A version of a model; with `counts` of its latencies by bucket, a broker's statistics."""
    found: dict[str, Any] = {"name": name, "version": version, "workers": 1, "latest": True, **more}
    if counts is not None:
        total = {"bounds": BOUNDS, "counts": counts, "sum": 1.0}
        batch = {"bounds": [1, 2], "counts": [0, 2, 0], "sum": 4}
        requests = {"ok": sum(counts), "INTERNAL": 1}
        found["statistics"] = {"requests": requests, "total": total, "batch": batch, "queued": 2, "outstanding": 3}
    return found


def worker(name: str = "host-1", state: str = "ready", **more: Any) -> dict[str, Any]:
    """A worker."""
    return {
        "name": name,
        "address": "127.0.0.1",
        "models": ["echo:1"],
        "slots": 2,
        "outstanding": 1,
        "state": state,
        "served": 5,
        "failed": 0,
        "silent": 0.1,
        **more,
    }
