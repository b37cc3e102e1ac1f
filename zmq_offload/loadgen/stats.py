"""Sums up the requests of a level. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from zmq_offload.loadgen.levels import Level
from zmq_offload.protocol.payload import Array

STABLE = 3
"""Consecutive windows that must agree."""

_AGREE = 0.10
"""The largest distance from their mean, as a share of it, in throughput and in median latency."""

_LATE = 0.05
"""An open loop that is late by more than this share of the time has not reached its rate."""

_HICCUP = 0.1
"""Seconds by which an open loop may be late on a busy machine."""

COLUMNS = ("end", "latency", "client", "queue", "compute", "network")
"""The values of a record, in seconds. `end` is by the clock that all processes share."""

PARTS = COLUMNS[2:]

_PERCENTILES = (50, 90, 95, 99)

LATENCIES = (*(f"p{p}" for p in _PERCENTILES), "max")
"""The latencies of a summary."""


def record(end: float, latency: float, queue: float, compute: float, broker: float) -> tuple[float, ...]:
    """The record of a served request.

    The latency has four parts: `queue` in the broker, `compute` in the worker, `network` between broker and worker and
    back, and `client`, the rest: the client, the way between it and the broker, and in an open loop the delay of
    sending.
    """
    return end, latency, latency - broker, queue, compute, broker - queue - compute


@dataclass
class Samples:
    """The reports on a level so far.

    `texts` has the first message of each error code; `late` has, for each process of an open loop, the seconds by
    which its next request is late.
    """

    level: Level
    began: float
    records: list[tuple[float, ...]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    texts: dict[str, str] = field(default_factory=dict)
    sent: int = 0
    late: dict[int, float] = field(default_factory=dict)

    def add(
        self,
        records: Iterable[tuple[float, ...]],
        errors: Iterable[tuple[str, str]],
        sent: int = 0,
        late: float = 0.0,
        process: int = 0,
    ) -> None:
        self.records.extend(records)
        self.sent += sent
        self.late[process] = late
        for code, text in errors:
            self.errors[code] += 1
            self.texts.setdefault(code, text)

    def windows(self, length: float, now: float) -> list[Array]:
        """The records of each window that is over, by the time at which requests ended."""
        count = int((now - self.began) / length)
        table = self._table()
        at = np.floor((table[:, 0] - self.began) / length).astype(int)
        return [table[at == number] for number in range(count)]

    def _table(self) -> Array:
        return np.array(self.records, dtype=np.float64).reshape(-1, len(COLUMNS))


def stable(windows: Sequence[Array]) -> bool:
    """Whether the last windows agree."""
    last = windows[-STABLE:]
    if len(last) < STABLE or not all(len(window) for window in last):
        return False
    return all(
        np.ptp(values) / 2 <= _AGREE * np.mean(values)
        for values in ([len(window) for window in last], [np.median(window[:, 1]) for window in last])
    )


@dataclass(frozen=True)
class Summary:
    """The figures of one level, times in milliseconds.

    `parts` has the mean of each of `PARTS`, `sent` the requests that an open loop began per second, and `short` says
    that the sender did not reach the rate.
    """

    level: Level
    stable: bool
    seconds: float
    requests: int
    throughput: float
    latency: dict[str, float]
    parts: dict[str, float]
    errors: dict[str, int]
    texts: dict[str, str]
    sent: float = 0.0
    short: bool = False

    def row(self) -> dict[str, object]:
        """The figures as one row of a CSV file."""
        return {
            "concurrency": self.level.concurrency or "",
            "rate": self.level.rate or "",
            "stable": self.stable,
            "seconds": round(self.seconds, 3),
            "requests": self.requests,
            "throughput": round(self.throughput, 2),
            **{f"{name}_ms": round(value, 4) for name, value in self.latency.items()},
            **{f"{name}_ms": round(value, 4) for name, value in self.parts.items()},
            "errors": sum(self.errors.values()),
            "sent": round(self.sent, 2) if self.level.rate else "",
            "short": self.short,
        }


def falls_short(samples: Samples, elapsed: float) -> bool:
    """Whether a process of an open loop is too late, `elapsed` seconds after its start."""
    return max(samples.late.values(), default=0.0) > max(_LATE * elapsed, _HICCUP)


def summarize(samples: Samples, windows: Sequence[Array], length: float, elapsed: float | None = None) -> Summary:
    """Sum up the last windows if they agree, and else all but the first, in which connections are made.

    `elapsed` is the duration of the level in seconds, by default that of all windows.
    """
    elapsed = length * len(windows) if elapsed is None else elapsed
    agree = stable(windows)
    used = list(windows[-STABLE:] if agree else windows[1:] or windows)
    table = np.concatenate(used) if used else np.empty((0, len(COLUMNS)))
    seconds = length * len(used)
    if len(table):
        latencies = table[:, 1] * 1e3
        latency = {f"p{p}": float(np.percentile(latencies, p)) for p in _PERCENTILES}
        latency["max"] = float(np.max(latencies))
        parts = {name: float(table[:, 2 + at].mean() * 1e3) for at, name in enumerate(PARTS)}
    else:
        latency = dict.fromkeys(LATENCIES, float("nan"))
        parts = dict.fromkeys(PARTS, float("nan"))
    throughput = len(table) / seconds if seconds else 0.0
    return Summary(
        samples.level,
        agree,
        seconds,
        len(table),
        throughput,
        latency,
        parts,
        dict(sorted(samples.errors.items())),
        samples.texts,
        samples.sent / elapsed if elapsed else 0.0,
        falls_short(samples, elapsed),
    )
