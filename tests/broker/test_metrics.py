"""The broker's metrics, after what happened to it. A parser of Prometheus' reads them."""

from __future__ import annotations

import threading

import pytest

from broker.events import FromWorker
from broker.metrics import MOST_PLACES, families
from tests.broker.test_core import Bench, dispatches, key_of
from tests.support.scrapes import samples
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_body
from zmq_offload.telemetry.exposition import render


@pytest.fixture
def bench() -> Bench:
    return Bench()


class Scrape:
    """The series by name and labels."""

    def __init__(self, bench: Bench) -> None:
        text = render(families(bench.core.ledger)).decode()
        self.series = {(name, tuple(sorted(labels))): value for (name, labels), value in samples(text).items()}

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.series.get((f"zmq_offload_{name}", tuple(sorted(labels.items()))))

    def all(self, name: str) -> dict[tuple[str, ...], float]:
        """The values of a family by the values of its labels, in the order of the labels' names."""
        return {
            tuple(value for _, value in labels): number
            for (series, labels), number in self.series.items()
            if series == f"zmq_offload_{name}"
        }


def test_a_new_broker_has_no_models_and_counts_zero(bench: Bench) -> None:
    scrape = Scrape(bench)
    assert scrape("accepted_requests_total") == scrape("lost_workers_total") == scrape("retries_total") == 0
    assert scrape.all("requests_total") == scrape.all("model_workers") == {}
    assert scrape.all("workers") == {("ready",): 0, ("quiet",): 0, ("draining",): 0}


def test_requests_by_model_version_and_status(bench: Bench) -> None:
    bench.announce(b"W1", ("m", 1), ("m", 2), slots=3)
    bench.now += 0.5
    (first,), (second,) = (dispatches(bench.request(n, version=n, payload=[b"1234"])) for n in (1, 2))
    bench.request(3, version=2)
    bench.request(4, version=2)  # waits
    bench.request(5, version=9, model="no")  # is refused once the broker is not new
    bench.now += 0.3
    bench.done(first, [b"123456"])
    message = wire.Failed(*key_of(second), "INTERNAL", "?")
    bench.handle(FromWorker(b"W1", message, []))
    scrape = Scrape(bench)
    assert scrape.all("requests_total") == {("m", "ok", "1"): 1, ("m", "ok", "2"): 0, ("m", "INTERNAL", "2"): 1}
    assert scrape("request_seconds_count", model="m", version="1") == 1
    assert scrape("request_seconds_sum", model="m", version="1") == pytest.approx(0.3)
    assert scrape("request_seconds_bucket", model="m", version="1", le="0.5") == 1
    assert scrape("request_seconds_bucket", model="m", version="1", le="0.25") == 0
    assert scrape("compute_seconds_sum", model="m", version="1") == pytest.approx(5e-6)
    assert scrape("batch_rows_count", model="m", version="1") == 1
    assert scrape.all("received_bytes_total") == {("m", "1"): 4, ("m", "2"): 4}
    assert scrape.all("sent_bytes_total") == {("m", "1"): 6, ("m", "2"): 0}
    # A client chose the name "no": it is no label.
    assert scrape.all("queued_requests") == {("", ""): 1, ("m", "1"): 0, ("m", "2"): 0}
    assert scrape.all("outstanding_requests") == {("", ""): 1, ("m", "1"): 0, ("m", "2"): 2}
    bench.after(5)
    bench.request(6, model="no")
    scrape = Scrape(bench)
    assert scrape("requests_total", model="", version="", status="UNAVAILABLE") is None
    assert sum(scrape.all("requests_total").values()) == 3
    assert scrape.all("refused_requests_total") == {("NOT_FOUND",): 1}


def test_workers_and_what_they_serve(bench: Bench) -> None:
    body = [encode_body([{"name": "m", "version": 1, "inputs": [], "outputs": []}])]
    bench.handle(FromWorker(b"W1", wire.Announce("one", 2, device="cuda:0", restarts=3), body))
    bench.handle(FromWorker(b"W1", wire.Heartbeat(1000), []))
    (dispatch,) = dispatches(bench.request(1))
    bench.handle(FromWorker(b"W1", wire.Done(*key_of(dispatch), 250_000, 1, 1), [b""]))
    bench.request(2)
    scrape = Scrape(bench)
    assert scrape("worker_info", worker="one", device="cuda:0") == 1
    assert scrape("worker_serves", worker="one", model="m", version="1") == 1
    assert scrape("worker_requests_total", worker="one", status="ok") == 1
    assert scrape("worker_requests_total", worker="one", status="failed") == 0
    assert scrape("worker_busy_seconds_total", worker="one") == 0.25
    assert scrape("worker_restarts_total", worker="one") == 3
    assert scrape("worker_memory_bytes", worker="one") == 1000
    assert scrape.all("worker_gpu_busy_ratio") == {}, "it does not tell"
    assert scrape("worker_slots", worker="one") == 2
    assert scrape("worker_outstanding_requests", worker="one") == 1
    assert scrape("workers", state="ready") == 1
    assert scrape("version_workers", model="m", version="1") == scrape("model_workers", model="m") == 1


def test_what_is_used_of_gpus(bench: Bench) -> None:
    """Two processes of one name have a GPU each. One of these does not tell how busy it is."""
    for peer, device, told in (
        (b"W1", "cuda:0", {"used_bytes": 5, "total_bytes": 8, "busy_percent": 87}),
        (b"W2", "cuda:1", {"used_bytes": 0, "total_bytes": 8}),
    ):
        bench.handle(FromWorker(peer, wire.Announce("one", 2, device=device), [encode_body([])]))
        bench.handle(FromWorker(peer, wire.Heartbeat(1), [encode_body({"gpu": told})]))
    scrape = Scrape(bench)
    assert scrape.all("worker_gpu_memory_used_bytes") == {("cuda:0", "one"): 5, ("cuda:1", "one"): 0}
    assert scrape.all("worker_gpu_memory_total_bytes") == {("cuda:0", "one"): 8, ("cuda:1", "one"): 8}
    assert scrape.all("worker_gpu_busy_ratio") == {("cuda:0", "one"): 0.87}


def test_a_worker_that_left_has_no_series_and_its_model_has_no_workers(bench: Bench) -> None:
    bench.announce()
    bench.handle(FromWorker(b"W1", wire.Goodbye(), []))
    assert Scrape(bench).all("workers") == {("ready",): 0, ("quiet",): 0, ("draining",): 1}
    bench.after(20)
    scrape = Scrape(bench)
    assert not [key for key in scrape.series if any(name == "worker" for name, _ in key[1])]
    assert scrape("model_workers", model="m") == 0
    assert scrape("version_workers", model="m", version="1") is None


def test_labels_and_canaries(bench: Bench) -> None:
    canary = {"version": 2, "share": 0.25}
    body = [
        {"name": "m", "version": 1, "inputs": [], "outputs": [], "config": {"labels": ["stable"], "canary": canary}},
        {"name": "m", "version": 2, "inputs": [], "outputs": [], "config": {"labels": [], "canary": canary}},
        {"name": "n", "version": 7, "inputs": [], "outputs": [], "config": {"labels": ["a", "b"]}},
    ]
    bench.handle(FromWorker(b"W1", wire.Announce("W1", 1), [encode_body(body)]))
    scrape = Scrape(bench)
    assert scrape.all("model_label") == {("stable", "m", "1"): 1, ("a", "n", "7"): 1, ("b", "n", "7"): 1}
    assert scrape.all("canary_share") == {("m", "2"): 0.25}
    trial = bench.core.ledger.routes.by_model["m"].trial
    assert trial is not None
    trial.returned = "it is worse"
    assert Scrape(bench).all("canary_share") == {("m", "2"): 0}


def test_workers_of_one_name_are_one_series(bench: Bench) -> None:
    body = [encode_body([{"name": "m", "version": 1, "inputs": [], "outputs": []}])]
    for peer, memory in ((b"W1", 1000), (b"W2", 500)):
        bench.handle(FromWorker(peer, wire.Announce("same", 2), body))
        bench.handle(FromWorker(peer, wire.Heartbeat(memory), []))
    scrape = Scrape(bench)
    assert scrape("worker_memory_bytes", worker="same") == 1500
    assert scrape("worker_slots", worker="same") == 4
    assert scrape("worker_info", worker="same", device="cpu") == 1


def test_a_name_may_have_any_characters(bench: Bench) -> None:
    name = 'a "b"\\n\nc\r{}'
    bench.handle(FromWorker(b"W1", wire.Announce(name, 2), [encode_body([])]))
    assert Scrape(bench)("worker_slots", worker=name) == 2


def test_a_fabric_with_very_many_versions_does_not_tell_who_has_each(bench: Bench) -> None:
    body = [{"name": f"m{n}", "version": 1, "inputs": [], "outputs": []} for n in range(MOST_PLACES // 2 + 1)]
    bench.handle(FromWorker(b"W1", wire.Announce("W1", 1), [encode_body(body)]))
    assert len(Scrape(bench).all("worker_serves")) == len(body)
    bench.core.handle(FromWorker(b"W2", wire.Announce("W2", 1), [encode_body(body)]), bench.now)
    assert Scrape(bench).all("worker_serves") == {}


def test_another_thread_may_make_them_while_the_broker_works(bench: Bench) -> None:
    """Requests wait for models that come and go, so that all tables change."""
    core, now = bench.core, bench.now
    seen: list[int | BaseException] = []
    ended = threading.Event()

    def scrape() -> None:
        try:
            while not ended.is_set():
                seen.append(len(render(families(core.ledger))))
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    number = 0
    while len(seen) < 50 and thread.is_alive():
        number += 1
        body = [{"name": f"m{number % 50}", "version": number, "inputs": [], "outputs": []}]
        now += 0.01
        core.handle(FromWorker(b"W%d" % (number % 7), wire.Announce("w", 4), [encode_body(body)]), now)
        bench.now = now
        bench.core.handle(FromWorker(b"W%d" % (number % 5), wire.Goodbye(), []), now)
    ended.set()
    thread.join()
    assert all(isinstance(each, int) for each in seen), seen[-1]
