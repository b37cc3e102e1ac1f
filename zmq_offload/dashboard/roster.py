"""The workers of a broker, and those that it lost. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from zmq_offload.dashboard.series import RECENT

LOST = "lost"
"""The state of a worker that vanished. The broker has no such state, as it forgets it."""

REMEMBERED = 300.0
"""Seconds for which a lost worker is shown."""

_REPLACED = 5.0
"""Seconds for which it is shown still when another one has its place: a supervisor may be quicker than eyes are."""

_MOST_LOST = 100
"""Lost workers that are shown at most: those that were lost last."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as it is now.

    Attributes
    ----------
    name, address, device
        Texts that the worker chose, or "".
    state
        "ready", "quiet", "draining" (docs/operations.md), or "lost" for one that vanished.
    busy
        The share of the last seconds that it computed, from 0 to 1; None if that is not known.
    memory_bytes
        Its memory; 0 if that is not known.
    restarts
        How often its supervisor started it again.
    slots, outstanding
        How many requests it may hold, and how many it holds.
    models, running
        "MODEL:VERSION" of what it serves, and of what it holds now.
    served, failed
        Requests that it ended.
    silent
        Seconds since it was heard, or since it was lost.
    gpu
        What is used of its GPU: `used_bytes`, `total_bytes`, `busy_percent`, as far as they are known.
    replaces
        The name of the lost worker in whose place it came a short time ago, or "".
    """

    name: str
    address: str
    device: str
    state: str
    busy: float | None
    memory_bytes: int
    restarts: int
    slots: int
    outstanding: int
    models: list[str]
    running: list[str]
    served: int
    failed: int
    silent: float
    gpu: Mapping[str, int] = field(default_factory=dict)
    replaces: str = ""


@dataclass(slots=True)
class _Known:
    view: WorkerView
    seen: float
    came: float
    replaced: float = inf  # when another one took its place
    busy: deque[tuple[float, float]] = field(default_factory=deque)


class Roster:
    """Who works for a broker.

    Two workers may have the same name: then the second of them is the one that comes second in the status.
    """

    def __init__(self) -> None:
        self._here: dict[tuple[str, int], _Known] = {}
        self._lost: dict[tuple[str, int], _Known] = {}

    def clear(self) -> None:
        """Another broker is looked at: its workers are others, and none is lost."""
        self._here.clear()
        self._lost.clear()

    def add(self, workers: Sequence[Mapping[str, Any]], now: float) -> None:
        """Take the workers of a status. Those that are not there any more are lost, unless they were about to go."""
        before, self._here = self._here, {}
        names: Counter[str] = Counter()
        fresh = []
        for worker in workers:
            view = _view(worker)
            key = view.name, names[view.name]
            names[view.name] += 1
            known = before.pop(key, None)
            if known is None:
                known = _Known(view, now, now)
                fresh.append((key, known))
            known.seen = now
            known.view = replace(view, busy=_share(known, worker.get("busy"), now), replaces=known.view.replaces)
            self._here[key] = known
        for key, known in before.items():
            if known.view.state != "draining":
                self._lost.pop(key, None)
                self._lost[key] = known
        for key, known in fresh:
            known.view = replace(known.view, replaces=self._take_place(key, known.view, now))
        self._forget(now)

    def views(self, now: float) -> list[WorkerView]:
        """All workers, and the lost ones, by name."""
        self._forget(now)
        here = [
            known.view if now - known.came < REMEMBERED else replace(known.view, replaces="")
            for known in self._here.values()
        ]
        lost = [
            replace(known.view, state=LOST, silent=now - known.seen, busy=None, outstanding=0, running=[])
            for known in self._lost.values()
        ]
        return sorted(here + lost, key=lambda view: view.name)

    def _take_place(self, key: tuple[str, int], view: WorkerView, now: float) -> str:
        """Find the lost worker in whose place one came; its name, or "" if there is none."""
        if self._lost.pop(key, None) is not None:
            return view.name
        for known in self._lost.values():
            waits = known.replaced == inf and view.restarts > known.view.restarts
            if waits and _host(known.view.name) == _host(view.name):
                known.replaced = now
                return known.view.name
        return ""

    def _forget(self, now: float) -> None:
        self._lost = {
            key: known
            for key, known in self._lost.items()
            if now - known.seen < REMEMBERED and now - known.replaced < _REPLACED
        }
        for key in list(self._lost)[:-_MOST_LOST]:
            del self._lost[key]


def _host(name: str) -> str:
    """A name without its last part, which is the process by default."""
    return name.rpartition("-")[0] or name


def _share(known: _Known, busy: float | None, now: float) -> float | None:
    """The share of the last seconds that a worker computed. `busy` is for how long it computed until now."""
    if busy is None:
        return None
    times = known.busy
    if times and busy < times[-1][1]:
        times.clear()  # another one has its name now
    times.append((now, busy))
    while len(times) > 2 and times[1][0] <= now - RECENT:
        times.popleft()
    since, then = times[0]
    return min(1.0, (busy - then) / (now - since)) if now > since else None


def _view(worker: Mapping[str, Any]) -> WorkerView:
    """A worker of a status. Older brokers say less."""
    return WorkerView(
        name=worker["name"],
        address=worker.get("address", ""),
        device=worker.get("device", ""),
        state=worker["state"],
        busy=None,
        memory_bytes=worker.get("memory_bytes", 0),
        restarts=worker.get("restarts", 0),
        slots=worker["slots"],
        outstanding=worker["outstanding"],
        models=list(worker["models"]),
        running=list(worker.get("running", ())),
        served=worker["served"],
        failed=worker["failed"],
        silent=worker["silent"],
        gpu=worker.get("gpu", {}),
    )
