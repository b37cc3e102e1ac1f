"""An hour of a broker's status: what the page and `zmq-offload top` show. Pure.

A `History` gets the answer to each Query "status", once a second, with the time of a clock that never goes back:

    history = History()
    history.add(status, now)           # or history.missed("no broker answers")
    view = history.view(now)           # dataclasses of plain values; JSON by msgspec.json.encode
    view.rates.p95, view.queued, [worker.state for worker in view.workers]

The memory is bounded: the whole fabric has a point for each 5 s of the hour (720), each of at most 64 versions of
models one for each 30 s (120). That is below 4 MB.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from zmq_offload.dashboard.roster import Roster, WorkerView
from zmq_offload.dashboard.series import HOUR, Point, Rates, Sample, Series, together
from zmq_offload.telemetry.histograms import Buckets

STEP = 5.0
"""Seconds of a point of the whole fabric."""

MODEL_STEP = 30.0
"""Seconds of a point of a version of a model."""

MOST_MODELS = 64
"""Versions with a history: those that came first. The others have their rates of now only."""

_MINUTE = 60.0

_MINUTES = int(HOUR / _MINUTE)

_SLACK = 2.0
"""Seconds by which two answers of one broker may be late."""


@dataclass(frozen=True, slots=True)
class BrokerView:
    """The broker.

    Attributes
    ----------
    state
        "waiting" before its first answer, "up", "stopping", or "none" while none answers.
    message
        Why none answers, or "".
    uptime
        Seconds since it started, at its last answer.
    restarts
        How often it was started again since the history began.
    retried, lost_workers
        Its counts of attempts that were repeated, and of workers that it lost.
    """

    state: str
    message: str
    uptime: float
    restarts: int
    retried: int
    lost_workers: int


@dataclass(frozen=True, slots=True)
class ModelView:
    """A version of a model. `points` is its hour, or what is new of it; `mean_batch` is 0 if that is not known."""

    name: str
    version: int
    latest: bool
    labels: list[str]
    workers: int
    queued: int
    outstanding: int
    mean_batch: float
    rates: Rates
    points: list[Point]


@dataclass(frozen=True, slots=True)
class ErrorView:
    """Requests that did not end well, by kind ("failed", "refused", "dropped") and code.

    `count` is the broker's, `hour` those of the last hour, as far as the history knows.
    """

    kind: str
    code: str
    count: int
    hour: int


@dataclass(frozen=True, slots=True)
class SlowView:
    """A slow request. Times are in seconds; `total` is more than `queue` and `compute` by what else took time."""

    model: str
    version: int
    worker: str
    ago: float
    queue: float
    compute: float
    total: float
    attempts: int
    status: str
    key: str


@dataclass(frozen=True, slots=True)
class View:
    """All of it. `now` is the time in steps of STEP seconds, as `Point.number` counts them; of a model's points, in
    steps of MODEL_STEP."""

    broker: BrokerView
    now: float
    step: float
    model_step: float
    rates: Rates
    queued: int
    outstanding: int
    served: int
    points: list[Point]
    models: list[ModelView]
    workers: list[WorkerView]
    errors: list[ErrorView]
    slow: list[SlowView]


class _Past(enum.Enum):
    """What is known of the past of a broker that answers."""

    UNKNOWN = enum.auto()  # it is the first one, or another one
    KNOWN = enum.auto()
    BEGAN = enum.auto()  # it was started after the last answer


@dataclass(frozen=True, slots=True)
class _Counts:
    """Counters of a status that only rise while the broker runs."""

    ok: int = 0
    failed: int = 0
    latency: Buckets | None = None


@dataclass(slots=True)
class _Version:
    """What is kept of a version of a model."""

    series: Series
    counts: _Counts


@dataclass(slots=True)
class _Errors:
    """Counts by kind and code, and how they rose in each minute of the last hour."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    minutes: deque[tuple[int, Counter[tuple[str, str]]]] = field(default_factory=lambda: deque(maxlen=_MINUTES))

    def add(self, counts: Counter[tuple[str, str]], since: Counter[tuple[str, str]], now: float) -> None:
        minute = int(now // _MINUTE)
        if not self.minutes or self.minutes[-1][0] != minute:
            self.minutes.append((minute, Counter()))
        for key, count in counts.items():
            self.minutes[-1][1][key] += _risen(count, since[key])
        self.counts = counts

    def views(self, now: float) -> list[ErrorView]:
        oldest = int((now - HOUR) // _MINUTE)
        hour: Counter[tuple[str, str]] = Counter()
        for minute, counts in self.minutes:
            if minute > oldest:
                hour.update(counts)
        views = [ErrorView(*key, self.counts[key], hour[key]) for key in {**self.counts, **hour}]
        return sorted((view for view in views if view.count or view.hour), key=lambda view: (-view.hour, -view.count))


class History:
    """What a broker's status was in the last hour, and is now."""

    def __init__(self) -> None:
        self._series = Series(STEP)
        self._totals = _Counts()
        self._versions: dict[tuple[str, int], _Version] = {}
        self._roster = Roster()
        self._errors = _Errors()
        self._status: Mapping[str, Any] | None = None
        self._at = 0.0
        self._message = ""
        self._restarts = 0

    def add(self, status: Mapping[str, Any], now: float) -> None:
        """Take a broker's status at `now`, in seconds of a clock that never goes back.

        If the broker was started again since the last one, its counts begin at 0. If another broker answers, which
        runs for longer, nothing is known of its past.
        """
        past = self._past(status, now - self._at)
        seconds = now - self._at
        if past is _Past.BEGAN:
            self._restarts += 1
            seconds = min(seconds, status["uptime"])
        elif past is _Past.UNKNOWN:
            self._roster.clear()
        self._status, self._at, self._message = status, now, ""
        self._roster.add(status["workers"], now)
        self._add_errors(status, past, now)
        latency = self._add_models(status, past, seconds, now)
        self._add_totals(status["requests"], past, seconds, latency, now)

    def missed(self, message: str) -> None:
        """No broker answers; `message` says why. What was known stays as it was."""
        self._message = message or "no broker answers"

    def view(self, now: float, *, changes: bool = False) -> View:
        """What is known at `now`. With `changes`, of each series only the last two points."""
        last = 2 if changes else None
        status = self._status or _NOTHING
        requests = status["requests"]
        return View(
            broker=BrokerView(
                state=self._state(),
                message=self._message,
                uptime=status["uptime"],
                restarts=self._restarts,
                retried=requests["retried"],
                lost_workers=status["lost_workers"],
            ),
            now=now / STEP,
            step=STEP,
            model_step=MODEL_STEP,
            rates=self._series.now(now),
            queued=requests["queued"],
            outstanding=requests["outstanding"],
            served=requests["served"],
            points=self._series.points(now, last),
            models=[self._model(model, now, last) for model in status["models"]],
            workers=self._roster.views(now),
            errors=self._errors.views(now),
            slow=[_slow(slow, now - self._at) for slow in status.get("slow", ())],
        )

    def _state(self) -> str:
        if self._message:
            return "none"
        if self._status is None:
            return "waiting"
        return "stopping" if self._status["stopping"] else "up"

    def _past(self, status: Mapping[str, Any], elapsed: float) -> _Past:
        """What the last status says of this one, which came `elapsed` seconds later."""
        if self._status is None:
            return _Past.UNKNOWN
        expected = self._status["uptime"] + elapsed
        if abs(expected - status["uptime"]) <= _SLACK + elapsed / 10 and status["uptime"] >= self._status["uptime"]:
            return _Past.KNOWN
        return _Past.BEGAN if status["uptime"] <= elapsed + _SLACK else _Past.UNKNOWN

    def _add_errors(self, status: Mapping[str, Any], past: _Past, now: float) -> None:
        requests = status["requests"]
        kinds = {"failed": requests["failed"], "refused": requests["refused"], "dropped": status["dropped"]}
        counts = Counter({(kind, code): count for kind, codes in kinds.items() for code, count in codes.items()})
        since = {_Past.BEGAN: Counter[tuple[str, str]](), _Past.UNKNOWN: counts, _Past.KNOWN: self._errors.counts}
        self._errors.add(counts, since[past], now)

    def _add_models(self, status: Mapping[str, Any], past: _Past, seconds: float, now: float) -> Buckets | None:
        """Add a sample to each version's series, and return the latencies of all of them.

        What the counts of a version are when it is first seen is not new: it may have served earlier.
        """
        here = {(model["name"], model["version"]): model for model in status["models"]}
        latencies: list[Buckets | None] = []
        for key, model in here.items():
            counts = _counts_of(model)
            version = self._versions.get(key)
            if version is None:
                version = _Version(Series(MODEL_STEP, keep=len(self._versions) < MOST_MODELS), counts)
                self._versions[key] = version
                if past is not _Past.BEGAN:
                    continue
            if past is _Past.BEGAN:
                version.counts = _Counts()
            if past is not _Past.UNKNOWN:
                sample = _sample(seconds, counts, version.counts, _queued(model))
                version.series.add(now, sample)
                latencies.append(sample.latency)
            version.counts = counts
        if len(self._versions) > MOST_MODELS:
            self._versions = {key: version for key, version in self._versions.items() if key in here}
        return together(latencies)

    def _add_totals(
        self, requests: Mapping[str, Any], past: _Past, seconds: float, latency: Buckets | None, now: float
    ) -> None:
        failed = sum(requests["failed"].values()) + sum(requests["refused"].values())
        totals = _Counts(requests["served"], failed)
        if past is not _Past.UNKNOWN:
            since = _Counts() if past is _Past.BEGAN else self._totals
            sample = _sample(seconds, totals, since, requests["queued"])
            self._series.add(now, replace(sample, latency=latency))
        self._totals = totals

    def _model(self, model: Mapping[str, Any], now: float, last: int | None) -> ModelView:
        series = self._versions[model["name"], model["version"]].series
        statistics = model.get("statistics", {})
        batch = _buckets(statistics.get("batch"))
        return ModelView(
            name=model["name"],
            version=model["version"],
            latest=model["latest"],
            labels=list(model.get("labels", ())),
            workers=model["workers"],
            queued=_queued(model),
            outstanding=statistics.get("outstanding", 0),
            mean_batch=0.0 if batch is None else batch.mean,
            rates=series.now(now),
            points=series.points(now, last),
        )


_NOTHING: Mapping[str, Any] = {
    "uptime": 0.0,
    "lost_workers": 0,
    "requests": {"served": 0, "queued": 0, "outstanding": 0, "retried": 0},
    "models": (),
}
"""What is known before the first status."""


def _counts_of(model: Mapping[str, Any]) -> _Counts:
    """The counts of a version. Older brokers have none."""
    statistics = model.get("statistics", {})
    requests = dict(statistics.get("requests", {}))
    ok = requests.pop("ok", 0)
    return _Counts(ok, sum(requests.values()), _buckets(statistics.get("total")))


def _queued(model: Mapping[str, Any]) -> int:
    queued: int = model.get("statistics", {}).get("queued", 0)
    return queued


def _buckets(body: Mapping[str, Any] | None) -> Buckets | None:
    return None if body is None else Buckets.of_body(body)


def _sample(seconds: float, counts: _Counts, since: _Counts, queued: int) -> Sample:
    """What happened since earlier counts."""
    latency = counts.latency
    if latency is not None and since.latency is not None and since.latency.bounds == latency.bounds:
        latency = latency.since(since.latency)
    return Sample(seconds, _risen(counts.ok, since.ok), _risen(counts.failed, since.failed), latency, queued)


def _risen(now: int, then: int) -> int:
    """By how much a counter rose. One that is lower began at 0 again."""
    return now - then if now >= then else now


def _slow(slow: Mapping[str, Any], since: float) -> SlowView:
    """A slow request of a status that came `since` seconds ago."""
    return SlowView(**{each: slow[each] for each in _SLOW} | {"ago": slow["ago"] + since})


_SLOW = [each.name for each in fields(SlowView)]
