"""What the page gets of a view: as much as a person looks at. A fabric may have thousands of versions. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zmq_offload.dashboard.history import ModelView, View

MOST_MODELS = 200
"""Versions that the page shows: first those that have something to do."""

MOST_WORKERS = 200
"""Workers that it shows: first those that need to be looked at."""

_MOST_NAMES = 4
"""Models of a worker that are named."""

_ORDER = {"lost": 0, "quiet": 1, "draining": 2, "ready": 3}


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What the page gets.

    Attributes
    ----------
    view
        With some of the models and workers, each of which names at most a few models.
    models, workers
        How many there are of each, lost workers included.
    ready, lost
        How many workers are in these states.
    """

    view: View
    models: int
    workers: int
    ready: int
    lost: int


def excerpt(view: View) -> Excerpt:
    """Choose what the page gets."""
    models = view.models
    if len(models) > MOST_MODELS:  # the order stays: rows that move cannot be read
        busy_first = sorted(range(len(models)), key=lambda at: not _has_to_do(models[at]))
        models = [models[at] for at in sorted(busy_first[:MOST_MODELS])]
    workers = sorted(view.workers, key=lambda worker: _ORDER[worker.state])
    states = [worker.state for worker in workers]
    shown = [
        replace(worker, models=_named(worker.models), running=_named(worker.running))
        for worker in workers[:MOST_WORKERS]
    ]
    return Excerpt(
        replace(view, models=models, workers=shown),
        models=len(view.models),
        workers=len(view.workers),
        ready=states.count("ready"),
        lost=states.count("lost"),
    )


def _has_to_do(model: ModelView) -> bool:
    return model.rates.requests > 0 or model.rates.errors > 0 or model.outstanding > 0


def _named(models: list[str]) -> list[str]:
    return models if len(models) <= _MOST_NAMES else [f"{len(models)} models"]
