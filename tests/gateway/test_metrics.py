"""What a gateway counts for its metrics, and the series that are made of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from tests.support.scrapes import samples
from zmq_offload.client.results import Timings
from zmq_offload.errors import (
    DeadlineExceeded,
    Internal,
    OffloadError,
    PermissionDenied,
    ResourceExhausted,
    Status,
    Unavailable,
)
from zmq_offload.gateway import metrics, tritonmetrics
from zmq_offload.gateway.caching import OwnMemory
from zmq_offload.gateway.calls import Call, Outputs
from zmq_offload.gateway.catalog import Catalog
from zmq_offload.gateway.metered import MeteredFabric
from zmq_offload.gateway.meters import Meters
from zmq_offload.gateway.metrics import PortState
from zmq_offload.gateway.responsecache import Key, ResponseCache
from zmq_offload.gateway.statistics import Statistics
from zmq_offload.protocol.packed import pack
from zmq_offload.protocol.tensors import TensorSpec
from zmq_offload.telemetry.exposition import Family, render

X = pack({"x": np.zeros((3, 2), np.float32)})
NBYTES = sum(X.layout.sizes)


def values(families: Iterable[Family]) -> dict[str, float]:
    """The samples of families by name and labels, as they are written: `name{label="value"}`."""
    found = samples(render(families).decode())
    return {f"{name}{_written(labels)}": value for (name, labels), value in found.items()}


def _written(labels: Iterable[tuple[str, str]]) -> str:
    pairs = ",".join(f'{label}="{value}"' for label, value in labels)
    return f"{{{pairs}}}" if pairs else ""


def served(
    meters: Meters, statistics: Statistics | None = None, cache: ResponseCache | None = None
) -> dict[str, float]:
    ports = [PortState("http", 3, 1000), PortState("grpc", 0, 0)]
    found = values(metrics.families(meters, statistics or Statistics(), ports, 5, cache))
    return {series.removeprefix("zmq_offload_gateway_"): value for series, value in found.items()}


class Bench:
    """A metered fabric, and what came of its calls."""

    def __init__(self, *names: str) -> None:
        self.inner = FakeFabric(*map(model, names))
        self.meters = Meters()
        self.fabric = MeteredFabric(self.inner, self.meters, "http")
        self.meters.look(self.inner.catalog)
        self.outcomes: list[Outputs | OffloadError] = []

    def infer(self, name: str = "m", version: int | None = None) -> None:
        self.fabric.infer(Call(name, version, X), ALL, self.outcomes.append)


def test_a_request_is_counted_when_it_ends() -> None:
    bench = Bench("m")
    bench.inner.hold = True
    bench.infer()
    assert served(bench.meters)['rows_total{model="m",version="1"}'] == 0
    bench.inner.release()
    assert isinstance(bench.outcomes[0], Outputs)
    found = served(bench.meters)
    assert found['requests_total{model="m",version="1",protocol="http",status="ok"}'] == 1
    assert found['request_seconds_bucket{model="m",version="1",le="0.0025"}'] == 0
    assert found['request_seconds_bucket{model="m",version="1",le="0.005"}'] == 1
    assert found['queue_seconds_total{model="m",version="1"}'] == 0.001
    assert found['compute_seconds_total{model="m",version="1"}'] == 0.002
    assert found['rows_total{model="m",version="1"}'] == 3
    assert found['received_bytes_total{model="m",version="1"}'] == NBYTES
    assert found['sent_bytes_total{model="m",version="1"}'] == NBYTES


def test_requests_by_both_protocols_are_added_up() -> None:
    meters = Meters()
    for protocol, number in (("http", 2), ("grpc", 3)):
        for _ in range(number):
            meters.answers(protocol, "m", 1).add(Timings(0.5, 0.25, 0.0, 1.0), X.layout, X.layout)
    found = served(meters)
    assert found['requests_total{model="m",version="1",protocol="http",status="ok"}'] == 2
    assert found['requests_total{model="m",version="1",protocol="grpc",status="ok"}'] == 3
    assert (
        found['request_seconds_count{model="m",version="1"}']
        == found['request_seconds_sum{model="m",version="1"}']
        == 5
    )
    assert found['queue_seconds_total{model="m",version="1"}'] == 2.5
    assert found['compute_seconds_total{model="m",version="1"}'] == 1.25
    assert found['rows_total{model="m",version="1"}'] == 15
    assert found['received_bytes_total{model="m",version="1"}'] == found['sent_bytes_total{model="m",version="1"}']


def test_a_failed_request_is_counted_by_its_status_for_the_version_that_it_was_for() -> None:
    bench = Bench("m")
    for error in (DeadlineExceeded("late"), Unavailable("gone"), Unavailable("gone")):
        bench.inner.run = lambda _, error=error: error
        bench.infer()
    bench.infer(version=1)
    found = served(bench.meters)
    assert found['requests_total{model="m",version="1",protocol="http",status="DEADLINE_EXCEEDED"}'] == 1
    assert found['requests_total{model="m",version="1",protocol="http",status="UNAVAILABLE"}'] == 3
    assert found['request_seconds_count{model="m",version="1"}'] == 0, "the times are those of answers"
    assert found['received_bytes_total{model="m",version="1"}'] == 4 * NBYTES


def test_clients_do_not_make_series() -> None:
    bench = Bench("m")
    bench.inner.run = lambda _: PermissionDenied("not yours")
    bench.infer("a")
    bench.infer("m", version=7)
    bench.infer("b", version=1)
    found = served(bench.meters)
    assert found['requests_total{model="",version="",protocol="http",status="PERMISSION_DENIED"}'] == 3
    assert not [series for series in found if '"a"' in series or '"7"' in series or '"b"' in series]


def test_a_canceled_request_is_counted_once() -> None:
    bench = Bench("m")
    bench.inner.hold = True
    cancel = bench.fabric.infer(Call("m", None, X), ALL, bench.outcomes.append)
    cancel()
    cancel()
    bench.inner.release()
    found = served(bench.meters)
    assert found['requests_total{model="m",version="1",protocol="http",status="CANCELLED"}'] == 1
    assert len([series for series in found if series.startswith("requests_total")]) == 1
    assert bench.inner.canceled == 1 and not bench.outcomes


def test_an_answer_that_cannot_be_passed_on_is_counted_once() -> None:
    bench = Bench("m")
    told: list[Outputs | OffloadError] = []

    def ended(outcome: Outputs | OffloadError) -> None:
        told.append(outcome)
        if isinstance(outcome, Outputs):
            raise MemoryError

    bench.fabric.infer(Call("m", None, X), ALL, ended)
    assert len(told) == 2 and isinstance(told[1], Internal)
    assert sum(served(bench.meters)[s] for s in served(bench.meters) if s.startswith("requests_total")) == 1


@pytest.mark.parametrize("canceled", [False, True])
def test_a_request_that_has_ended_leaves_no_cycle(canceled: bool) -> None:
    class Ending:
        def __call__(self, outcome: Outputs | OffloadError) -> None: ...

    bench = Bench("m")
    bench.inner.hold = True
    ending = Ending()
    alive = weakref.ref(ending)
    cancel = bench.fabric.infer(Call("m", None, X), ALL, ending)
    gc.disable()
    try:
        if canceled:
            cancel()
        bench.inner.release()
        del cancel, ending
        assert alive() is None
    finally:
        gc.enable()


def test_all_else_is_passed_on() -> None:
    bench = Bench("m")
    assert bench.fabric.statistics is bench.inner.statistics and not bench.fabric.stopping
    answers: list[object] = []
    bench.fabric.models(ALL, answers.append, "m", 1)
    bench.fabric.unload("m", ALL, answers.append)
    bench.fabric.load("m", ALL, answers.append)
    assert isinstance(answers[0], Catalog) and answers[1:] == [None, None]


def test_a_version_keeps_its_series_when_its_workers_leave_and_a_dead_broker_shows() -> None:
    meters = Meters()
    assert served(meters)["broker_up"] == 0
    meters.look(Catalog([model("m", version=1), replace(model("m", version=2), latest=False)]))
    assert served(meters)["broker_up"] == 1
    meters.look(Catalog([model("m", version=1)]))
    meters.look(Catalog([]))
    meters.failed("grpc", Status.UNAVAILABLE, "m", None, "", X.layout)
    meters.look(Unavailable("no broker"))
    found = served(meters)
    assert found["broker_up"] == 0
    assert found['requests_total{model="m",version="1",protocol="grpc",status="UNAVAILABLE"}'] == 1
    assert found['request_seconds_count{model="m",version="2"}'] == 0


def test_a_version_that_answers_before_it_is_listed_is_counted() -> None:
    meters = Meters()
    meters.answers("http", "m", 3).add(Timings(0.1, 0.2, 0.3, 0.4), X.layout, X.layout)
    meters.failed("http", Status.UNAVAILABLE, "m", None, "", X.layout)
    assert served(meters)['requests_total{model="m",version="3",protocol="http",status="ok"}'] == 1
    assert served(meters)['requests_total{model="m",version="3",protocol="http",status="UNAVAILABLE"}'] == 1


def test_a_failed_request_with_a_label_counts_for_its_version() -> None:
    meters = Meters()
    new = replace(model("m", version=2), latest=False, labels=("canary", "next"))
    meters.look(Catalog([replace(model("m", version=1), labels=("stable",)), new]))
    for label in ("canary", "next", "stable", "none"):
        meters.failed("http", Status.INTERNAL, "m", None, label, X.layout)
    found = served(meters)
    failed = [found[f'requests_total{{model="m",version="{n}",protocol="http",status="INTERNAL"}}'] for n in (1, 2)]
    assert failed == [1, 2]
    assert found['requests_total{model="",version="",protocol="http",status="INTERNAL"}'] == 1


def test_ports_are_told() -> None:
    found = served(Meters())
    assert (found['connections{port="http"}'], found['held_bytes{port="http"}']) == (3, 1000)
    assert (found['connections{port="grpc"}'], found["outstanding_requests"]) == (0, 5)
    assert not [series for series in found if series.startswith("cache")]


def test_the_cache_is_told() -> None:
    statistics, cache = Statistics(), ResponseCache(100_000)
    statistics.count("kept", 1).hit(2, 0.001, 1.0)
    statistics.count("missed", 1).cache_miss.add(0.002)
    statistics.count("plain", 1).succeeded(1, Timings(0, 0, 0, 0), 1.0)
    OwnMemory(cache).put(Key("kept", 1, b""), [b"abc"], 60.0)
    found = served(Meters(), statistics, cache)
    assert found['cache_hits_total{model="kept",version="1"}'] == 1
    assert found['cache_misses_total{model="missed",version="1"}'] == 1
    assert not [series for series in found if "plain" in series]
    assert (found["cache_entries"], found["cache_evictions_total"], found["cache_bytes"]) == (1, 0, cache.nbytes)


def test_triton_has_the_same_numbers_by_its_names() -> None:
    meters, statistics = Meters(), Statistics()
    batch = TensorSpec("x", "float32", (-1, 2))
    catalog = Catalog([model("batched", batch, outputs=(batch,)), model("plain", TensorSpec("x", "float32", (3,)))])
    meters.look(catalog)
    for name in ("batched", "plain"):
        statistics.count(name, 1).succeeded(3, Timings(0.001, 0.002, 0.003, 0.004), 1.0)
    statistics.count("batched", 1).hit(3, 0.0005, 1.0)
    for error in (DeadlineExceeded("x"), ResourceExhausted("x"), Internal("x"), Unavailable("x")):
        meters.failed("http", error.code, "plain", None, "", X.layout)
    meters.failed("grpc", Status.CANCELLED, "plain", 1, "", X.layout)
    meters.answers("grpc", "plain", 1).add(Timings(0.1, 0.2, 0.3, 0.4), X.layout, X.layout)
    found = values(tritonmetrics.families(meters, statistics, catalog))
    assert {series.removeprefix("nv_"): value for series, value in found.items() if "batched" in series} == {
        'inference_request_success{model="batched",version="1"}': 2,
        'inference_count{model="batched",version="1"}': 3,
        'inference_request_duration_us{model="batched",version="1"}': 4500,
        'inference_queue_duration_us{model="batched",version="1"}': 1000,
        'inference_compute_infer_duration_us{model="batched",version="1"}': 2000,
        'cache_num_hits_per_model{model="batched",version="1"}': 1,
        'cache_num_misses_per_model{model="batched",version="1"}': 0,
        'cache_hit_duration_per_model{model="batched",version="1"}': 500,
        'cache_miss_duration_per_model{model="batched",version="1"}': 0,
        **{
            f'inference_request_failure{{model="batched",version="1",reason="{reason}"}}': 0
            for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
        },
    }
    failed = 'nv_inference_request_failure{{model="plain",version="1",reason="{}"}}'
    reasons = {"REJECTED": 2, "CANCELED": 1, "BACKEND": 1, "OTHER": 1}
    assert {reason: found[failed.format(reason)] for reason in reasons} == reasons
    assert found['nv_inference_count{model="plain",version="1"}'] == 1
    assert (
        values(tritonmetrics.families(meters, statistics, None))['nv_inference_count{model="batched",version="1"}'] == 1
    )


def test_triton_calls_requests_pending_that_wait_in_the_broker() -> None:
    queued, other = Family("zmq_offload_queued_requests", "gauge", "x"), Family("zmq_offload_workers", "gauge", "x")
    for family in (queued, other):
        family.add(3, {"model": "m", "version": "1"})
    found = values(tritonmetrics.with_pending([queued, other]))
    labels = '{model="m",version="1"}'
    assert found == {
        f"zmq_offload_queued_requests{labels}": 3,
        f"nv_inference_pending_request_count{labels}": 3,
        f"zmq_offload_workers{labels}": 3,
    }
