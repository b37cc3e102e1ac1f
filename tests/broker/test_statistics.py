"""What the broker counts of its requests, by what ends them."""

from __future__ import annotations

from typing import Any

import pytest

from broker import statistics
from broker.events import FromClient, FromWorker, ToWorker
from broker.state import PendingRequest, Wanted
from broker.statistics import MOST_SLOW, MOST_VERSIONS, SLOW_FOR, Statistics
from broker.status import describe_status
from tests.broker.test_core import ALICE, Bench, dispatches, key_of
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.messages import Key
from zmq_offload.protocol.payload import encode_body
from zmq_offload.telemetry.histograms import Buckets


@pytest.fixture
def bench() -> Bench:
    return Bench()


def status(bench: Bench) -> Any:
    return describe_status(bench.core.ledger, bench.now, lambda model: model != "secret")


def model(bench: Bench) -> Any:
    return status(bench)["models"][0]["statistics"]


def done(bench: Bench, dispatch: ToWorker, compute_us: int = 5, rows: int = 1, batch: int = 1, out: int = 3) -> None:
    message = wire.Done(*key_of(dispatch), compute_us, rows, batch)
    bench.handle(FromWorker(dispatch.peer, message, [b"x" * out]))


def test_a_version_that_had_no_request(bench: Bench) -> None:
    bench.announce()
    counted = model(bench)
    assert counted["requests"] == {"ok": 0}
    assert counted["queued"] == counted["outstanding"] == 0
    assert set(counted["total"]["counts"]) == {0}


def test_where_the_time_of_a_request_went(bench: Bench) -> None:
    bench.announce()
    (first,) = dispatches(bench.request(1, payload=[b"head", b"tensor"]))
    bench.request(2)
    assert (model(bench)["queued"], model(bench)["outstanding"]) == (1, 2)
    assert status(bench)["workers"][0]["running"] == ["m:1"]
    bench.now += 0.25
    done(bench, first, 200_000, rows=3, batch=3)
    counted = model(bench)
    assert counted["requests"] == {"ok": 1}
    assert (counted["queue"]["sum"], counted["compute"]["sum"], counted["total"]["sum"]) == (0, 0.2, 0.25)
    assert (counted["rows"], counted["bytes_in"], counted["bytes_out"]) == (3, 10, 3)
    assert (counted["queued"], counted["outstanding"]) == (0, 1)
    bench.now += 0.25
    (second,) = dispatches(bench.seen)[1:]
    done(bench, second, 200_000)
    queue = Buckets.of_body(model(bench)["queue"])
    assert (queue.count, queue.sum) == (2, 0.25)
    assert status(bench)["workers"][0]["busy"] == 0.4


def test_a_batch_counts_once_with_its_time(bench: Bench) -> None:
    bench.announce(slots=2)
    (one,), (two,) = dispatches(bench.request(1)), dispatches(bench.request(2))
    done(bench, one, 100_000, rows=4, batch=6)
    done(bench, two, 100_000, rows=2, batch=0)
    batch = Buckets.of_body(model(bench)["batch"])
    assert (batch.count, batch.sum) == (1, 6)
    assert model(bench)["rows"] == 6
    assert status(bench)["workers"][0]["busy"] == 0.1
    assert model(bench)["compute"]["sum"] == 0.2


def test_a_late_answer_was_work_all_the_same(bench: Bench) -> None:
    bench.announce()
    (dispatch,) = dispatches(bench.request(budget=1))
    bench.after(2)
    done(bench, dispatch, 1_500_000)
    assert model(bench)["requests"] == {"ok": 0, "DEADLINE_EXCEEDED": 1}
    assert model(bench)["bytes_in"] == 4
    assert status(bench)["workers"][0]["busy"] == 1.5
    (slow,) = status(bench)["slow"]
    assert slow == {
        "model": "m", "version": 1, "worker": "W1", "ago": 1, "queue": 0, "compute": 0, "total": 1, "attempts": 1,
        "status": "DEADLINE_EXCEEDED", "key": str(Key(ALICE, 1)),
    }  # fmt: skip


def test_errors_of_workers_count_by_their_code(bench: Bench) -> None:
    bench.announce()
    for number, code in enumerate(("INVALID_ARGUMENT", "WEIRD", "INTERNAL"), 1):
        (dispatch,) = dispatches(bench.request(number))
        bench.handle(FromWorker(b"W1", wire.Failed(*key_of(dispatch), code, "?"), []))
    assert model(bench)["requests"] == {"ok": 0, "INVALID_ARGUMENT": 1, "INTERNAL": 2}


def test_requests_that_no_worker_had_count_for_the_version_that_they_would_have_got(bench: Bench) -> None:
    counted = bench.core.ledger.statistics
    bench.request(1, budget=1)
    bench.request(2, model="of-a-client", budget=1)
    bench.after(1.5)
    assert counted.unplaced == {"DEADLINE_EXCEEDED": 2}
    bench.announce(b"W1", ("m", 1), ("m", 2))
    for number, wanted in ((3, 0), (4, 1)):
        bench.handle(FromWorker(b"W1", wire.Goodbye(), []))
        bench.request(number, version=wanted, budget=1)
    bench.after(30)
    assert {runs: dict(version.failed) for runs, version in counted.versions.items()} == {
        ("m", 2): {"DEADLINE_EXCEEDED": 1},
        ("m", 1): {"DEADLINE_EXCEEDED": 1},
    }
    assert counted.unplaced == {"DEADLINE_EXCEEDED": 2}


def test_the_newest_version_that_fits_counts(bench: Bench) -> None:
    bench.announce(b"W1", ("m", 1), ("m", 2))
    catalog = bench.core.ledger.catalog
    (signature,) = {model.signature for model in bench.core.ledger.workers[b"W1"].models.values()}
    wanted = (Wanted("m"), Wanted("m", 1), Wanted("m", 3), Wanted("m", 0, signature), Wanted("m", 0, b"?"), Wanted("n"))
    assert [catalog.newest(each) for each in wanted] == [2, 1, 0, 2, 0, 0]


def test_a_worker_tells_device_memory_and_restarts(bench: Bench) -> None:
    body = [b"\x90"]
    bench.handle(FromWorker(b"W1", wire.Announce("one", 2, device="cuda:0", restarts=3), body))
    bench.handle(FromWorker(b"W1", wire.Heartbeat(12345), []))
    bench.handle(FromWorker(b"W1", wire.Heartbeat(), []))  # of the thread that speaks for a busy worker
    (worker,) = status(bench)["workers"]
    assert (worker["device"], worker["memory_bytes"], worker["restarts"], worker["busy"]) == ("cuda:0", 12345, 3, 0)
    assert "gpu" not in worker, "as of older workers"


def test_a_worker_tells_what_is_used_of_its_gpu(bench: Bench) -> None:
    bench.handle(FromWorker(b"W1", wire.Announce("one", 2, device="cuda:0"), [b"\x90"]))
    told = {"used_bytes": 5, "total_bytes": 8, "busy_percent": 87}
    bench.handle(FromWorker(b"W1", wire.Heartbeat(1), [encode_body({"gpu": told | {"later": 1}, "later": 2})]))
    assert status(bench)["workers"][0]["gpu"] == told
    for wrong in ([], {"gpu": 5}, {"gpu": {"used_bytes": -1}}, {"gpu": {"busy_percent": 101}}):
        bench.handle(FromWorker(b"W1", wire.Heartbeat(1), [encode_body(wrong)]))
    bench.handle(FromWorker(b"W1", wire.Heartbeat(1), [b"\x80", b"\x80"]))
    assert status(bench)["dropped"]["malformed"] == 5
    assert status(bench)["workers"][0]["gpu"] == told
    bench.handle(FromWorker(b"W1", wire.Heartbeat(), []))  # of the thread that speaks for a busy worker
    assert status(bench)["workers"][0]["gpu"] == told
    bench.handle(FromWorker(b"W1", wire.Heartbeat(1), [encode_body({"gpu": {"used_bytes": 6}})]))
    assert status(bench)["workers"][0]["gpu"] == {"used_bytes": 6}


def test_a_key_sees_only_its_models(bench: Bench) -> None:
    bench.announce(b"W1", ("m", 1), ("secret", 1), slots=2)
    (dispatch,) = dispatches(bench.request(1, model="secret"))
    assert status(bench)["workers"][0]["running"] == []
    done(bench, dispatch)
    assert status(bench)["slow"] == []


def test_of_very_many_versions_only_those_have_statistics_that_had_requests(bench: Bench) -> None:
    body = [{"name": "m", "version": n, "inputs": [], "outputs": []} for n in range(1, MOST_VERSIONS + 2)]
    bench.core.handle(FromWorker(b"W1", wire.Announce("W1", 1), [encode_body(body)]), bench.now)
    assert not [model for model in status(bench)["models"] if "statistics" in model]
    (dispatch,) = dispatches(bench.request(1, version=7))
    done(bench, dispatch)
    (seen,) = [model for model in status(bench)["models"] if "statistics" in model]
    assert seen["version"] == 7 and seen["statistics"]["requests"] == {"ok": 1}
    bench.core.handle(FromWorker(b"W1", wire.Announce("W1", 1), [encode_body(body[1:])]), bench.now)
    assert len([model for model in status(bench)["models"] if "statistics" in model]) == MOST_VERSIONS
    assert len(encode_body(status(bench))) < limits.BODY_BYTES / 2


def pending(number: int, accepted_at: float, model: str = "m", version: int = 1) -> PendingRequest:
    return PendingRequest(
        key=Key(ALICE, number), client=b"", owner=b"", wanted=Wanted(model), priority=0, deadline=1e9,
        accepted_at=accepted_at, payload=(), nbytes=1, longest=1, runs=version, attempt=1, dispatched_at=accepted_at,
    )  # fmt: skip


DONE = wire.Done(ALICE, 1, 1, 5, 1, 1)


def test_the_slowest_requests_are_kept_for_a_while() -> None:
    counts = Statistics(0.0)
    for number in range(1, 201):
        counts.served(pending(number, 100.0 - (number * 37 % 200) / 10), DONE, 1, 100.0)
    counts.failed(pending(201, 99.9), 1, "CANCELLED", 100.0)
    slowest = counts.slow(100.0)
    assert [round(10 * slow.total) for slow in slowest] == [*range(199, 199 - MOST_SLOW, -1)]
    # A new search begins; those of the last one stay until it ends, too.
    now = SLOW_FOR + 1
    counts.failed(pending(999, now), 1, "INTERNAL", now)
    assert len(counts.slow(now)) == MOST_SLOW
    assert counts.slow(100 + 2 * SLOW_FOR)[-1].status == "INTERNAL"
    assert len(counts.slow(100 + 2 * SLOW_FOR)) == 1
    now += SLOW_FOR + 1
    counts.served(pending(1000, now), DONE, 1, now)
    assert [slow.status for slow in counts.slow(now)] == ["ok", "INTERNAL"]
    assert counts.slow(now + 10 * SLOW_FOR) == []


def test_versions_are_bounded_and_no_request_is_lost() -> None:
    counts = Statistics(0.0)
    for version in range(1, MOST_VERSIONS + 3):
        counts.served(pending(version, 0.0, version=version), DONE, 1, 0.0)
    assert len(counts.versions) == MOST_VERSIONS
    assert counts.unplaced == {statistics.OK: 2}
    assert sum(version.requests["ok"] for version in counts.versions.values()) == MOST_VERSIONS


def test_clients_do_not_make_it_grow(bench: Bench) -> None:
    bench.announce()
    for number in range(100):
        message = wire.Request(ALICE, number + 1, f"m{number}", 0, 1_000_000, 0)
        bench.handle(FromClient(b"a", message, [b""]))
    bench.after(5)
    assert bench.core.ledger.statistics.versions == {}
    assert len(bench.core.ledger.statistics.unplaced) <= 2
