"""The broker's metrics, made from its ledger when they are asked for. Pure.

Another thread than the broker's may call this. It copies each table at once, which no other thread can interrupt, so
that none changes while it is gone through. Numbers of one answer may be a request apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from broker.ledger import Ledger
from broker.lifecycle import WorkerState
from broker.listing import served_versions
from broker.state import Worker
from broker.status import holding, waiting
from zmq_offload.telemetry.exposition import Family

MOST_PLACES = 2000
"""Series that tell which worker has which version; a larger fabric has none of them."""


def families(ledger: Ledger) -> Iterator[Family]:
    """All families of a broker, one after the other, so that none takes long."""
    yield from _of_the_broker(ledger)
    yield from _of_versions(ledger)
    yield from _of_routes(ledger)
    workers = list(ledger.workers.values())
    yield from _of_workers(workers)
    yield from _of_gpus(workers)


def _of_the_broker(ledger: Ledger) -> Iterator[Family]:
    counts = {"accepted": ledger.accepted, **ledger.counts}
    info = Family("zmq_offload_broker_info", "gauge", "Which of several processes of its host a broker is, as a label.")
    info.add(1, {"process": str(ledger.process)})
    yield info
    for name, key, help in (
        ("zmq_offload_accepted_requests_total", "accepted", "Requests that the broker promised to answer."),
        ("zmq_offload_retries_total", "retried", "Attempts that were made again because a worker was lost."),
        ("zmq_offload_canary_returns_total", "canary_returns", "Canaries that were worse and get no share any more."),
        ("zmq_offload_lost_workers_total", "lost_workers", "Workers that ended or fell silent without a goodbye."),
    ):
        family = Family(name, "counter", help)
        family.add(counts.get(key, 0))
        yield family
    refused = Family("zmq_offload_refused_requests_total", "counter", "Requests that were not accepted, by status.")
    for key in sorted(counts):
        if key.startswith("refused."):
            refused.add(counts[key], {"status": key.removeprefix("refused.")})
    yield refused
    dropped = Family("zmq_offload_dropped_messages_total", "counter", "Messages that came to nothing, by reason.")
    for reason in ("late", "duplicate", "malformed", "undelivered"):
        dropped.add(counts.get(reason, 0), {"reason": reason})
    yield dropped
    queued = Family("zmq_offload_queued_bytes", "gauge", "Bytes of all queued requests.")
    queued.add(ledger.scheduler.queued_bytes)
    yield queued


def _of_versions(ledger: Ledger) -> Iterator[Family]:
    served = [(wanted[:2], len(pool.runs)) for wanted, pool in served_versions(ledger.scheduler)]
    workers = Family("zmq_offload_version_workers", "gauge", "Workers that run a version of a model.")
    for runs, count in served:
        workers.add(count, _labels(*runs))
    yield workers
    holders = Family("zmq_offload_model_workers", "gauge", "Workers that serve a model; 0 if all have left.")
    for model in ledger.catalog.names():
        holders.add(len(ledger.scheduler.holders.get(model, ())), {"model": model})
    yield holders
    queued, held = waiting(ledger), holding(ledger)
    counted = sorted(ledger.statistics.versions.items(), key=lambda item: item[0])
    known = sorted({*(runs for runs, _ in served), *(runs for runs, _ in counted), *queued, *held})
    for name, gauge, help in (
        ("zmq_offload_queued_requests", queued, "Requests that wait for a worker."),
        ("zmq_offload_outstanding_requests", queued + held, "Requests that are accepted and not answered."),
    ):
        family = Family(name, "gauge", help)
        for runs in known:
            family.add(gauge[runs], _labels(*runs))
        yield family
    requests = Family("zmq_offload_requests_total", "counter", "Requests that ended, by status; ok: with a result.")
    for runs, version in counted:
        for status, count in version.requests.items():
            requests.add(count, _labels(*runs) | {"status": status})
    for status, count in sorted(dict(ledger.statistics.unplaced).items()):
        requests.add(count, _labels("", 0) | {"status": status})
    yield requests
    for name, attribute, help in (
        ("zmq_offload_queue_seconds", "queue", "Time until a worker had the request that it answered."),
        ("zmq_offload_compute_seconds", "compute", "Time in the worker that answered."),
        ("zmq_offload_request_seconds", "total", "Time of answered requests in the broker and its workers."),
        ("zmq_offload_batch_rows", "batch", "Rows of each batch that ran."),
    ):
        family = Family(name, "histogram", help)
        for runs, version in counted:
            family.add_buckets(getattr(version, attribute).buckets(), _labels(*runs))
        yield family
    for name, attribute, help in (
        ("zmq_offload_rows_total", "rows", "Rows of the requests that were answered with a result."),
        ("zmq_offload_received_bytes_total", "bytes_in", "Bytes of the inputs of requests that ended."),
        ("zmq_offload_sent_bytes_total", "bytes_out", "Bytes of the outputs of requests."),
    ):
        family = Family(name, "counter", help)
        for runs, version in counted:
            family.add(getattr(version, attribute), _labels(*runs))
        yield family


def _of_routes(ledger: Ledger) -> Iterator[Family]:
    """What labels stand for, and which versions are canaries."""
    labels = Family("zmq_offload_model_label", "gauge", "Which version a label stands for, as labels.")
    share = Family("zmq_offload_canary_share", "gauge", "The share of the requests that a canary gets.")
    for model, route in sorted(ledger.routes.by_model.items(), key=lambda item: item[0]):
        for label, version in sorted(route.labels.items()):
            labels.add(1, {"model": model, "label": label, "version": str(version)})
        if (trial := route.trial) is not None:
            share.add(0 if trial.returned else trial.canary.share, _labels(model, trial.canary.version))
    yield labels
    yield share


def _of_workers(workers: list[Worker]) -> Iterator[Family]:
    states = Counter(worker.state for worker in workers)
    family = Family("zmq_offload_workers", "gauge", "Workers that are connected, by state.")
    for state in WorkerState:
        if state is not WorkerState.GONE:
            family.add(states[state], {"state": state.value})
    yield family
    info = Family("zmq_offload_worker_info", "gauge", "What each worker runs on, as labels.")
    for name, device in sorted({(worker.name, worker.device) for worker in workers}):
        info.add(1, {"worker": name, "device": device})
    yield info
    places = Family("zmq_offload_worker_serves", "gauge", "Which worker serves which version, as labels.")
    if sum(len(worker.models) for worker in workers) <= MOST_PLACES:
        for name, model, version in sorted({(worker.name, *runs) for worker in workers for runs in worker.models}):
            places.add(1, {"worker": name} | _labels(model, version))
    yield places
    requests = Family("zmq_offload_worker_requests_total", "counter", "Requests that a worker answered, by how.")
    for how, numbers in (
        ("ok", _by_name((worker.name, worker.served) for worker in workers)),
        ("failed", _by_name((worker.name, worker.failed) for worker in workers)),
    ):
        for name, value in numbers.items():
            requests.add(value, {"worker": name, "status": how})
    yield requests
    busy = Family("zmq_offload_worker_busy_seconds_total", "counter", "Time in which a worker ran requests.")
    for name, value in _by_name((worker.name, worker.busy_us) for worker in workers).items():
        busy.add(value / 1e6, {"worker": name})
    yield busy
    restarts = Family("zmq_offload_worker_restarts_total", "counter", "Processes that a worker took the place of.")
    for name, value in _by_name((worker.name, worker.restarts) for worker in workers).items():
        restarts.add(value, {"worker": name})
    yield restarts
    for series, gauges, help in (
        ("slots", [(each.name, each.slots) for each in workers], "Requests that a worker may hold."),
        ("outstanding_requests", [(each.name, len(each.held)) for each in workers], "Requests that it holds."),
        ("memory_bytes", [(each.name, each.memory_bytes) for each in workers], "Bytes that it has in memory."),
    ):
        family = Family(f"zmq_offload_worker_{series}", "gauge", help)
        for name, value in _by_name(gauges).items():
            family.add(value, {"worker": name})
        yield family


def _of_gpus(workers: list[Worker]) -> Iterator[Family]:
    """What GPUs told, if any did. Processes of one GPU tell the same of it."""
    told = sorted(
        {(worker.name, worker.device): worker.gpu for worker in workers if worker.gpu is not None}.items(),
        key=lambda item: item[0],
    )
    for series, values, help in (
        ("memory_used_bytes", [use.used_bytes for _, use in told], "Bytes of its GPU's memory that are used, by all."),
        ("memory_total_bytes", [use.total_bytes for _, use in told], "Bytes of its GPU's memory."),
        (
            "busy_ratio",
            [None if use.busy_percent is None else use.busy_percent / 100 for _, use in told],
            "Share of the last moment in which something ran on its GPU, from 0 to 1.",
        ),
    ):
        family = Family(f"zmq_offload_worker_gpu_{series}", "gauge", help)
        for ((name, device), _), value in zip(told, values, strict=True):
            if value is not None:
                family.add(value, {"worker": name, "device": device})
        yield family


def _by_name(numbers: Iterable[tuple[str, int]]) -> Mapping[str, int]:
    """The sums by name: processes of one supervisor have one name if it was given."""
    sums: Counter[str] = Counter()
    for name, number in numbers:
        sums[name] += number
    return dict(sorted(sums.items()))


def _labels(model: str, version: int) -> dict[str, str]:
    """Those of a version. They are empty for requests for what no worker ever had."""
    return {"model": model, "version": str(version) if version else ""}
