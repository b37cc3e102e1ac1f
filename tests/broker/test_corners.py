"""Rare situations. Together with the other tests, these reach every branch of the core without randomness."""

from __future__ import annotations

import pytest

from broker.catalog import Catalog
from broker.events import Disconnected, FromClient, FromWorker, Stop, Tick, ToClient, ToWorker, Undelivered
from broker.state import Model, Wanted
from tests.broker.test_core import ALICE, POLICY, Bench, codes, dispatches, key_of, replies
from zmq_offload.protocol import limits
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import encode_body


@pytest.fixture
def bench() -> Bench:
    return Bench()


def announce(bench: Bench, peer: bytes, max_frame_bytes: int) -> None:
    body = [{"name": "m", "version": 1, "inputs": [], "outputs": []}]
    bench.handle(FromWorker(peer, wire.Announce(peer.decode(), 1, max_frame_bytes), [encode_body(body)]))


def gone(peer: bytes) -> Undelivered:
    return Undelivered(ToWorker(peer, wire.Probe()), False)


def test_a_deadline_that_passes_at_a_worker_names_the_worker(bench: Bench) -> None:
    bench.announce()
    bench.request(budget=5)
    (error,) = replies(bench.after(5))
    assert error.text == "deadline exceeded after 5.000 s at worker W1"


def test_a_deadline_that_passes_in_the_queue_is_said_to(bench: Bench) -> None:
    bench.announce()
    bench.request(1)
    bench.request(2, budget=5)
    (error,) = replies(bench.after(5))
    assert error.text == "deadline exceeded after 5.000 s while queued"


def test_a_request_that_waited_for_a_worker_waits_for_a_slot_until_its_deadline(bench: Bench) -> None:
    bench.request(1)
    bench.request(2)
    (first,) = dispatches(bench.announce())
    assert replies(bench.after(POLICY.worker_grace)) == []
    assert [dispatch.message.id for dispatch in dispatches(bench.done(first))] == [2]


def test_a_reply_to_a_client_that_is_gone_is_counted(bench: Bench) -> None:
    assert bench.handle(Undelivered(ToClient(b"a", wire.Pong(ALICE, [])), False)) == []
    assert bench.core.ledger.counts["undelivered"] == 1


def test_a_stop_that_takes_too_long_fails_what_is_left(bench: Bench) -> None:
    bench.announce()
    bench.request(1)
    bench.handle(Stop(2))
    bench.handle(Stop(9))  # a second signal does not prolong it
    assert codes(bench.after(2)) == ["UNAVAILABLE"]
    assert bench.core.finished


def test_a_worker_that_is_not_known_is_not_lost_again(bench: Bench) -> None:
    bench.announce()
    bench.handle(gone(b"W1"))
    assert bench.handle(gone(b"W1")) == []
    assert bench.core.ledger.counts["lost_workers"] == 1


def test_a_disconnect_makes_the_broker_probe_all_workers(bench: Bench) -> None:
    bench.announce(b"W1")
    bench.announce(b"W2")
    assert [action.peer for action in bench.handle(Disconnected())] == [b"W1", b"W2"]


def test_a_draining_worker_that_announces_gets_no_requests(bench: Bench) -> None:
    bench.announce(slots=2)
    bench.request(1)
    bench.handle(FromWorker(b"W1", wire.Goodbye(), []))
    assert dispatches(bench.announce(slots=2)) == []
    bench.handle(FromWorker(b"W1", wire.Goodbye(), []))
    assert dispatches(bench.request(2)) == []


def test_a_failure_that_comes_too_late_frees_the_slot(bench: Bench) -> None:
    bench.announce()
    (dispatch,) = dispatches(bench.request(1, budget=1))
    bench.after(1)
    bench.handle(FromWorker(b"W1", wire.Failed(*key_of(dispatch), "INTERNAL", "?"), []))
    assert bench.core.ledger.counts["late"] == 1
    assert dispatches(bench.request(2))


def test_a_request_fails_when_its_worker_is_lost_and_no_other_takes_its_frames(bench: Bench) -> None:
    announce(bench, b"small", 100)
    announce(bench, b"large", 200)
    (dispatch,) = dispatches(bench.request(payload=[b"x" * 150]))
    assert dispatch.peer == b"large"
    assert codes(bench.handle(gone(b"large"))) == ["INVALID_ARGUMENT"]


def test_of_a_queue_only_requests_that_no_worker_takes_fail(bench: Bench) -> None:
    announce(bench, b"small", 100)
    announce(bench, b"large", 200)
    for number in (1, 2, 3):
        bench.request(number, payload=[b"x" * 90])
    bench.request(4, payload=[b"x" * 150])
    actions = bench.handle(FromWorker(b"large", wire.Goodbye(), []))
    assert [error.id for error in replies(actions)] == [4]
    assert 3 in {key.id for key in bench.core.ledger.requests}


def test_only_the_last_poison_requests_are_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.ledger._POISON_KEPT", 1)
    for number in (1, 2):
        bench.request(number, budget=1000)
        for attempt in range(POLICY.max_attempts):
            peer = b"W%d.%d" % (number, attempt)
            bench.announce(peer)
            bench.handle(gone(peer))
    assert [key.id for key in bench.core.ledger.poison] == [2]


def test_an_answer_to_a_query_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_BYTES", 100)
    (error,) = replies(bench.handle(FromClient(b"a", wire.Query(ALICE, 1, "status"), [])))
    assert error.code == "RESOURCE_EXHAUSTED"
    assert "the limit is 100" in error.text


def test_an_announcement_of_what_is_not_an_array_of_tensors_is_malformed(bench: Bench) -> None:
    body = [{"name": "m", "version": 1, "inputs": {}, "outputs": []}]
    (action,) = bench.handle(FromWorker(b"W1", wire.Announce("w", 1), [encode_body(body)]))
    assert isinstance(action.message, wire.Error)
    assert "inputs and outputs are arrays of tensors" in action.message.text


def test_a_tick_does_what_is_due_once(bench: Bench) -> None:
    bench.announce()
    bench.now += POLICY.heartbeat
    assert [type(action.message) for action in bench.handle(Tick())] == [wire.Probe]
    assert bench.handle(Tick()) == []


def test_the_catalog_of_announced_models_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_ITEMS", 2)
    catalog = Catalog()
    catalog.add({("a", 1): model()})
    catalog.lost(["a"], 5.0)
    assert catalog.lost_at("a") == 5.0
    catalog.add({("b", 1): model(), ("b", 2): model(), ("b", 3): model(), ("c", 1): model()})
    assert len(catalog) == 2
    assert not catalog.has(Wanted("a")) and catalog.lost_at("a") < 0
    assert [catalog.has(Wanted("b", version)) for version in (1, 2, 3)] == [False, True, True]


def model() -> Model:
    return Model({"name": "", "version": 1, "inputs": [], "outputs": []}, b"", ())


def test_a_free_worker_leaves_what_is_too_large_for_it_to_others(bench: Bench) -> None:
    announce(bench, b"large", 100)
    announce(bench, b"small", 50)
    (first,) = dispatches(bench.request(1, payload=[bytes(80)]))
    assert first.peer == b"large" and dispatches(bench.request(2, payload=[bytes(80)])) == []
    assert dispatches(bench.handle(FromWorker(b"small", wire.Heartbeat(), []))) == []
    (second,) = dispatches(bench.done(first))
    assert second.peer == b"large"
