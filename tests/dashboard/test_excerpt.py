"""What the page gets of large fabrics."""

from __future__ import annotations

from typing import Any

from tests.dashboard.snapshots import status
from zmq_offload.dashboard.excerpt import MOST_MODELS, MOST_WORKERS, Excerpt, excerpt
from zmq_offload.dashboard.history import History

TIMES: dict[str, Any] = {"bounds": [1.0], "counts": [0, 0], "sum": 0.0}


def model(number: int, ok: int = 0) -> dict[str, Any]:
    statistics = {"requests": {"ok": ok}, "total": TIMES, "batch": TIMES, "queued": 0, "outstanding": 0}
    return {"name": f"m{number:04}", "version": 1, "latest": True, "workers": 1, "statistics": statistics}


def worker(number: int, models: int = 1) -> dict[str, Any]:
    return {"name": f"w{number:04}", "state": "ready", "slots": 1, "outstanding": 0, "served": 0, "failed": 0,
            "silent": 0.0, "models": [f"m:{version}" for version in range(models)]}  # fmt: skip


def excerpt_of(models: int, workers: int, lost: int = 0) -> Excerpt:
    """With requests for the last model only."""
    history = History()
    everyone = [worker(number) for number in range(workers)]
    for second in (1, 2):
        served = [model(number, second if number == models - 1 else 0) for number in range(models)]
        there = everyone if second == 1 else everyone[: workers - lost]
        history.add(status(10.0 + second, models=served, workers=there), float(second))
    return excerpt(history.view(2.0))


def test_a_small_fabric_is_shown_as_it_is() -> None:
    found = excerpt_of(3, 2)
    assert (found.models, found.workers, found.ready, found.lost) == (3, 2, 2, 0)
    assert [each.name for each in found.view.models] == ["m0000", "m0001", "m0002"]
    assert [each.name for each in found.view.workers] == ["w0000", "w0001"]


def test_of_many_those_are_shown_that_matter() -> None:
    found = excerpt_of(1000, 500, lost=1)
    assert (found.models, found.workers, found.ready, found.lost) == (1000, 500, 499, 1)
    assert len(found.view.models) == MOST_MODELS and len(found.view.workers) == MOST_WORKERS
    assert [each.name for each in found.view.models[-2:]] == ["m0198", "m0999"]  # the last has requests
    assert (found.view.workers[0].name, found.view.workers[0].state) == ("w0499", "lost")


def test_a_worker_with_many_models_tells_how_many() -> None:
    history = History()
    history.add(status(workers=[worker(0, 4), worker(1, 3000)]), 1.0)
    few, many = excerpt(history.view(1.0)).view.workers
    assert (len(few.models), many.models) == (4, ["3000 models"])
