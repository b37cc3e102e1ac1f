"""Metrics under the names of Triton, where they mean the same. Pure; other threads may call this.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from zmq_offload.errors import Status
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.gateway.meters import Meters
from zmq_offload.gateway.metrics import labels_of, looked_up
from zmq_offload.gateway.oip.metadata import batched
from zmq_offload.gateway.statistics import Statistics, VersionStatistics
from zmq_offload.telemetry.exposition import Family

REASONS = {
    Status.DEADLINE_EXCEEDED.value: "REJECTED",
    Status.RESOURCE_EXHAUSTED.value: "REJECTED",
    Status.CANCELLED.value: "CANCELED",
    Status.INTERNAL.value: "BACKEND",
}
"""Why requests failed, in Triton's words. All other statuses are "OTHER"."""


def families(meters: Meters, statistics: Statistics, catalog: Catalog | None) -> Iterator[Family]:
    """What Triton serves and a gateway knows. `catalog` says which models have a batch."""
    yield _failures(meters)
    counted = statistics.versions()
    listed = () if catalog is None else (*catalog.models, *catalog.gone)
    with_batch = {(model.name, model.version) for model in listed if batched(model)}
    yield _counter(
        "nv_inference_request_success",
        "Number of successful inference requests, all batch sizes",
        counted,
        lambda its: its.success.count,
    )
    inferences = Family(
        "nv_inference_count", "counter", "Number of inferences performed (does not include cached requests)"
    )
    for model, version, its in counted:
        inferences.add(its.computed((model, version) in with_batch), labels_of(model, version))
    yield inferences
    for name, help, value in (
        ("request", "Cumulative inference request duration", lambda its: its.success.ns // 1000),
        ("queue", "Cumulative inference queuing duration", lambda its: its.queue.ns // 1000),
        ("compute_infer", "Cumulative inference compute duration", lambda its: its.compute.ns // 1000),
    ):
        yield _counter(f"nv_inference_{name}_duration_us", f"{help} in microseconds", counted, value)
    cached = looked_up(statistics)
    for what, help, value in (
        ("num_hits", "Number of cache hits", lambda its: its.cache_hit.count),
        ("num_misses", "Number of cache misses", lambda its: its.cache_miss.count),
        ("hit_duration", "Cumulative time of cache hits, in microseconds", lambda its: its.cache_hit.ns // 1000),
        ("miss_duration", "Cumulative time of cache misses, in microseconds", lambda its: its.cache_miss.ns // 1000),
    ):
        yield _counter(f"nv_cache_{what}_per_model", f"{help} per model", cached, value)


def with_pending(of_the_broker: Iterable[Family]) -> Iterator[Family]:
    """A broker's families, and by Triton's name the requests that wait: only a broker knows them."""
    for family in of_the_broker:
        yield family
        if family.name == "zmq_offload_queued_requests":
            yield family.under(
                "nv_inference_pending_request_count", "Instantaneous number of pending requests awaiting execution"
            )


def _failures(meters: Meters) -> Family:
    family = Family("nv_inference_request_failure", "counter", "Number of failed inference requests, by reason")
    for model, version, its in meters.versions():
        reasons = Counter(dict.fromkeys((*REASONS.values(), "OTHER"), 0))
        for (_, status), count in dict(its.failures).items():
            reasons[REASONS.get(status, "OTHER")] += count
        for reason, count in reasons.items():
            family.add(count, {**labels_of(model, version), "reason": reason})
    return family


def _counter(
    name: str,
    help: str,
    counted: list[tuple[str, int, VersionStatistics]],
    value: Callable[[VersionStatistics], int],
) -> Family:
    family = Family(name, "counter", help)
    for model, version, its in counted:
        family.add(value(its), labels_of(model, version))
    return family
