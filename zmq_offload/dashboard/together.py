"""The status of several brokers as that of one. Pure.

What rises only, such as the requests that were served, rises in the sum, too, when a broker is started again, or while
it does not answer: what it counted before is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

from zmq_offload.telemetry.histograms import Buckets

Status: TypeAlias = Mapping[str, Any]

_MOST_SLOW = 50
_HISTOGRAMS = ("queue", "compute", "total", "batch")


class _Broker:
    """What is known of one of the brokers."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.earlier: list[Status] = []  # what processes had counted that have ended, as one status
        self.last: Status | None = None
        self.error = ""

    def add(self, status: Status) -> None:
        """It answered. One that is younger than the one before was started since."""
        if self.last is not None and status["uptime"] < self.last["uptime"]:
            self.earlier = [_merged([*self.earlier, _counts_of(self.last)])]
        self.last, self.error = status, ""

    def statuses(self) -> list[Status]:
        if self.last is None:
            return self.earlier
        return [*self.earlier, _counts_of(self.last) if self.error else self.last]

    def view(self) -> dict[str, object]:
        """A line of the list of brokers."""
        status = self.last or {}
        requests = status.get("requests", {})
        return {
            "endpoint": self.endpoint,
            "error": self.error,
            "uptime": status.get("uptime", 0.0),
            "restarts": status.get("restarts", 0),
            "served": requests.get("served", 0),
            "outstanding": 0 if self.error else requests.get("outstanding", 0),
            "queued": 0 if self.error else requests.get("queued", 0),
        }


class Together:
    """Several brokers. Add the answer of each to the same look, and take the `status` of all."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._brokers = [_Broker(endpoint) for endpoint in endpoints]
        self._began: float | None = None

    def add(self, answers: Iterable[Status | str], now: float) -> None:
        """Take what each broker answered at `now` seconds, or why it did not."""
        for broker, answer in zip(self._brokers, answers, strict=True):
            if isinstance(answer, str):
                broker.error = answer
            else:
                broker.add(answer)
        if self._began is None:
            self._began = now - max(broker.last["uptime"] for broker in self._brokers if broker.last is not None)

    def status(self, now: float) -> dict[str, Any]:
        """The status of all: as one broker would answer, with a list `brokers`.

        Numbers of requests are sums. The uptime is that of the oldest broker, and goes on when that is started again. A
        worker that serves several has the slots of all.
        """
        assert self._began is not None  # else nothing was added
        found = _merged([status for broker in self._brokers for status in broker.statuses()])
        views = [broker.view() for broker in self._brokers]
        served = [model for model in found["models"] if model["workers"]]
        return {**found, "models": served, "uptime": now - self._began, "brokers": views}


def _counts_of(status: Status) -> Status:
    """A status of a process that has ended, or does not answer: what it counted, and nothing that is there now."""
    requests = {**status["requests"], "outstanding": 0, "queued": 0, "queued_bytes": 0}
    models = [
        {**model, "workers": 0, "latest": False, "labels": [], "slots": 0, "of_workers": 0, "of_slots": 0}
        | ({"statistics": {**model["statistics"], "queued": 0, "outstanding": 0}} if "statistics" in model else {})
        for model in status["models"]
    ]
    nothing: dict[str, Any] = {"stopping": False, "queues": [], "workers": [], "slow": []}
    if "clients" in status:
        nothing["clients"] = {"connected": 0, "sharing": 0, "listed": []}
    return {**status, **nothing, "requests": requests, "models": models}


def _merged(statuses: Sequence[Status]) -> dict[str, Any]:
    requests = [status["requests"] for status in statuses]
    numbers = ("accepted", "outstanding", "queued", "queued_bytes", "served", "retried")
    slow = [one for status in statuses for one in status.get("slow", ())]
    return {
        "uptime": max(status["uptime"] for status in statuses),
        "stopping": any(status["stopping"] for status in statuses),
        "process": 0,
        "restarts": sum(status.get("restarts", 0) for status in statuses),
        "requests": {name: sum(each[name] for each in requests) for name in numbers}
        | {name: _sums(each[name] for each in requests) for name in ("failed", "refused")},
        "dropped": _sums(status["dropped"] for status in statuses),
        "lost_workers": max(status["lost_workers"] for status in statuses),  # each lost the same ones
        "models": _by_key([status["models"] for status in statuses], ("name", "version"), _both_models),
        "queues": _by_key([status["queues"] for status in statuses], ("model", "version"), _both_queues),
        "workers": _by_key([status["workers"] for status in statuses], ("name",), _both_workers),
        "slow": sorted(slow, key=lambda one: -one["total"])[:_MOST_SLOW],
        **_clients([status["clients"] for status in statuses if "clients" in status]),
    }


def _clients(each: Sequence[Status]) -> dict[str, Any]:
    """The clients of all brokers. One that is connected to several counts for each."""
    if not each:
        return {}
    listed: dict[tuple[Any, ...], dict[str, Any]] = {}
    for client in (client for clients in each for client in clients["listed"]):
        key = client["process"], client["address"], client["transport"], client["shared_memory"].get("why", "")
        count = client["connections"] + (listed[key]["connections"] if key in listed else 0)
        listed[key] = {**client, "connections": count}
    numbers = {name: sum(clients[name] for clients in each) for name in ("connected", "sharing")}
    return {"clients": {**numbers, "listed": list(listed.values())}}


def _sums(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for each in counts:
        found.update(each)
    return dict(found)


def _by_key(lists: Sequence[Sequence[Status]], names: tuple[str, ...], both: Any) -> list[dict[str, Any]]:
    """The entries of all lists. Those with the same key become one; of several in one list, the first of each list."""
    found: dict[tuple[Any, ...], list[Status]] = {}
    for entries in lists:
        seen: Counter[tuple[Any, ...]] = Counter()
        for entry in entries:
            key = tuple(entry[name] for name in names)
            found.setdefault((*key, seen[key]), []).append(entry)
            seen[key] += 1
    return [dict(reduce(both, entries)) for _, entries in sorted(found.items(), key=lambda item: item[0])]


def _both_models(one: Status, two: Status) -> Status:
    known = [each["statistics"] for each in (one, two) if "statistics" in each]
    most = {name: max(one[name], two[name]) for name in ("workers", "slots", "of_workers", "of_slots")}
    labels = list(dict.fromkeys([*one.get("labels", ()), *two.get("labels", ())]))
    found = {**two, **one, **most, "latest": one["latest"] or two["latest"], "labels": labels}
    return {**found, "statistics": reduce(_both_statistics, known)} if known else found


def _both_statistics(one: Status, two: Status) -> Status:
    numbers = ("rows", "bytes_in", "bytes_out", "queued", "outstanding")
    return (
        {name: one[name] + two[name] for name in numbers}
        | {name: Buckets.of_body(one[name]).plus(Buckets.of_body(two[name])).body() for name in _HISTOGRAMS}
        | {"requests": _sums((one["requests"], two["requests"]))}
    )


def _both_queues(one: Status, two: Status) -> Status:
    return {**one, **{name: one[name] + two[name] for name in ("queued", "bytes")}}


def _both_workers(one: Status, two: Status) -> Status:
    """A worker that several brokers know. It is quiet for one while it is busy for another."""
    states = {one["state"], two["state"]}
    return {
        **two,  # which may tell of a GPU already
        **one,
        **{name: one[name] + two[name] for name in ("slots", "outstanding", "served", "failed", "busy")},
        **{name: max(one[name], two[name]) for name in ("memory_bytes", "restarts")},
        **{name: sorted({*one[name], *two[name]}) for name in ("models", "running")},
        "silent": min(one["silent"], two["silent"]),
        "state": next(state for state in ("draining", "ready", "quiet") if state in states),
    }
