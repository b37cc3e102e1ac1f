"""The broker's promise, read as a specification. No sockets; time is passed in."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from broker.admission import QueueLimits
from broker.core import Core
from broker.events import (
    Action,
    Authorized,
    Disconnected,
    FromClient,
    FromWorker,
    Malformed,
    Stop,
    Tick,
    ToClient,
    ToWorker,
    Undelivered,
)
from broker.invariants import validate, validate_statistics
from broker.liveness import LivenessPolicy
from broker.status import describe_status
from zmq_offload.cli.status import describe
from zmq_offload.console.tables import text
from zmq_offload.errors import ProtocolError
from zmq_offload.net.grants import Grant
from zmq_offload.protocol import messages as wire
from zmq_offload.protocol.payload import decode_body, encode_body
from zmq_offload.protocol.tensors import TensorSpec, signature_of

POLICY = LivenessPolicy(heartbeat=1, patience=3, hang_grace=10, worker_grace=2, max_attempts=3)
LIMITS = QueueLimits(max_queued=8, max_queued_bytes=1000, max_queued_per_model=6, max_queued_per_client=4)
ALICE, BOB, CAROL = b"a" * 16, b"b" * 16, b"c" * 16


class Bench:
    """A core, its clock, and a method for each event."""

    def __init__(self) -> None:
        self.now = 100.0
        self.core = Core(POLICY, self.now, queue_limits=LIMITS)
        self.seen: list[Action] = []

    def handle(self, event: Any) -> list[Action]:
        actions = self.core.handle(event, self.now)
        validate(self.core)
        validate_statistics(self.core)
        self.seen += actions
        return actions

    def after(self, seconds: float) -> list[Action]:
        """Let time pass, and call the core at each of its deadlines."""
        end, actions = self.now + seconds, []
        while (due := self.core.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            actions += self.handle(Tick())
        self.now = end
        return actions

    def announce(self, peer: bytes = b"W1", *models: tuple[str, int], slots: int = 1) -> list[Action]:
        body = [{"name": n, "version": v, "inputs": [], "outputs": []} for n, v in models or [("m", 1)]]
        return self.handle(FromWorker(peer, wire.Announce(peer.decode(), slots), [encode_body(body)]))

    def request(
        self, number: int = 1, session: bytes = ALICE, *, model: str = "m", version: int = 0, budget: float = 60,
        priority: int = 0, peer: bytes | None = None, payload: list[bytes] | None = None,
    ) -> list[Action]:  # fmt: skip
        message = wire.Request(session, number, model, version, int(budget * 1e6), priority)
        return self.handle(FromClient(peer or session[:1], message, [b"head"] if payload is None else payload))

    def done(self, dispatch: ToWorker, payload: list[bytes] | None = None) -> list[Action]:
        message = wire.Done(*key_of(dispatch), 5)
        return self.handle(FromWorker(dispatch.peer, message, [b"out"] if payload is None else payload))


def key_of(dispatch: ToWorker) -> tuple[bytes, int, int]:
    assert isinstance(dispatch.message, wire.Dispatch)
    return dispatch.message[:3]


def dispatches(actions: list[Action]) -> list[ToWorker]:
    return [a for a in actions if isinstance(a, ToWorker) and isinstance(a.message, wire.Dispatch)]


def replies(actions: list[Action]) -> list[Any]:
    return [a.message for a in actions if isinstance(a, ToClient)]


def codes(actions: list[Action]) -> list[str]:
    return [message.code for message in replies(actions) if isinstance(message, wire.Error)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    # After every test, each accepted request got exactly one terminal reply, or still waits.
    terminal = [
        m[:2] for m in replies(bench.seen) if isinstance(m, wire.Result | wire.Error) and m[:2] in bench_accepted(bench)
    ]
    assert len(terminal) == len(set(terminal))


def bench_accepted(bench: Bench) -> set[Any]:
    return {key_of(d)[:2] for d in dispatches(bench.seen)}


# --- without failures ---------------------------------------------------------------------------------------


def test_a_request_goes_to_a_worker_and_its_result_to_the_client(bench: Bench) -> None:
    bench.announce()
    (dispatch,) = dispatches(bench.request(payload=[b"head", b"tensor"]))
    assert dispatch.peer == b"W1"
    assert dispatch.payload == [b"head", b"tensor"]
    assert dispatch.message == wire.Dispatch(ALICE, 1, 1, "m", 1, 60_000_000)
    bench.now += 0.5
    (reply,) = bench.done(dispatch, [b"out", b"y"])
    assert reply == ToClient(b"a", wire.Result(ALICE, 1, 1, 0, 5, 500_000), [b"out", b"y"])
    assert not bench.core.ledger.requests


def test_a_request_waits_for_a_worker_to_come(bench: Bench) -> None:
    assert bench.request() == []
    bench.now += 1.5
    (dispatch,) = dispatches(bench.announce())
    bench.now += 0.25
    (reply,) = replies(bench.done(dispatch))
    assert reply.queue_us == 1_500_000
    assert reply.broker_us == 1_750_000


def test_the_budget_that_travels_on_is_what_is_left(bench: Bench) -> None:
    bench.request(budget=10)
    bench.now += 1
    (dispatch,) = dispatches(bench.announce())
    assert dispatch.message.budget_us == 9_000_000


# --- choice -------------------------------------------------------------------------------------------------


def test_the_worker_with_the_least_outstanding_per_slot_is_chosen(bench: Bench) -> None:
    bench.announce(b"small", slots=1)
    bench.announce(b"large", slots=4)
    order = [dispatches(bench.request(n))[0].peer for n in range(1, 6)]
    assert sorted(order[:2]) == [b"large", b"small"]
    assert order[2:] == [b"large"] * 3
    assert bench.request(6) == []


def test_what_a_worker_holds_for_other_brokers_counts_as_outstanding_and_takes_no_slot(bench: Bench) -> None:
    bench.announce(b"A", slots=2)
    bench.announce(b"B", slots=2)
    bench.handle(FromWorker(b"A", wire.Heartbeat(0, 3), []))
    assert [dispatches(bench.request(n))[0].peer for n in range(1, 5)] == [b"B", b"B", b"A", b"A"]
    bench.announce(b"C", slots=2)
    bench.handle(FromWorker(b"C", wire.Heartbeat(0, 1), []))
    bench.announce(b"D", slots=2)
    bench.handle(FromWorker(b"D", wire.Heartbeat(0, 5), []))
    bench.handle(FromWorker(b"D", wire.Heartbeat(), []))  # of a thread that does not know
    assert [dispatches(bench.request(n))[0].peer for n in range(5, 7)] == [b"C", b"C"]
    bench.handle(FromWorker(b"D", wire.Heartbeat(0, 0), []))
    assert dispatches(bench.request(7))[0].peer == b"D"


def test_ties_rotate(bench: Bench) -> None:
    for name in (b"A", b"B", b"C"):
        bench.announce(name)
    order = []
    for n in range(6):
        (dispatch,) = dispatches(bench.request(n + 1))
        order.append(dispatch.peer)
        bench.done(dispatch)
    assert order[:3] == order[3:]
    assert set(order) == {b"A", b"B", b"C"}


def test_a_small_request_goes_where_fewer_bytes_are_before_it(bench: Bench) -> None:
    for name in (b"A", b"B"):
        bench.announce(name, slots=4)
    (large,) = dispatches(bench.request(1, payload=[b"x" * 1000]))
    (small,) = dispatches(bench.request(2))
    assert small.peer != large.peer
    (tie,) = dispatches(bench.request(3))
    assert tie.peer == small.peer, "each has one request; the other worker's is larger"
    (least,) = dispatches(bench.request(4))
    assert least.peer == large.peer, "the number of requests counts first"


def test_an_urgent_request_for_one_model_goes_before_an_older_one_for_another(bench: Bench) -> None:
    bench.announce(b"W", ("a", 1), ("b", 1))
    (busy,) = dispatches(bench.request(1, model="a"))
    bench.request(2, ALICE, model="a", priority=-5)
    bench.request(1, BOB, model="b", priority=0)
    bench.request(2, BOB, model="b", priority=-9)
    (next_,) = dispatches(bench.done(busy))
    assert key_of(next_)[:2] == (BOB, 1)
    (then,) = dispatches(bench.done(next_))
    assert key_of(then)[:2] == (ALICE, 2)


def test_the_latest_version_is_what_a_request_without_one_gets(bench: Bench) -> None:
    bench.announce(b"old", ("m", 1))
    bench.announce(b"new", ("m", 1), ("m", 2))
    bench.announce(b"newer", ("m", 2))
    (dispatch,) = dispatches(bench.request(1))
    assert (dispatch.peer, dispatch.message.version) == (b"new", 2)
    (dispatch,) = dispatches(bench.request(2, version=1))
    assert (dispatch.peer, dispatch.message.version) == (b"old", 1)


def test_clients_take_turns_however_many_requests_one_has(bench: Bench) -> None:
    for n in range(1, 5):
        bench.request(n, ALICE)
    bench.request(1, BOB)
    (dispatch,) = dispatches(bench.announce())
    order = []
    while True:
        order.append(dispatch.message.session)
        following = dispatches(bench.done(dispatch))
        if not following:
            break
        (dispatch,) = following
    assert order == [ALICE, BOB, ALICE, ALICE, ALICE]


def test_urgent_requests_go_first(bench: Bench) -> None:
    bench.request(1)
    bench.request(2, priority=5)
    bench.request(3, priority=-5)
    (dispatch,) = dispatches(bench.announce())
    order = [dispatch.message.id]
    while following := dispatches(bench.done(dispatch)):
        (dispatch,) = following
        order.append(dispatch.message.id)
    assert order == [2, 1, 3]


def test_a_worker_of_several_models_takes_the_request_that_waited_longest(bench: Bench) -> None:
    bench.request(1, model="b")
    bench.now += 0.1
    bench.request(2, model="a")
    (dispatch,) = dispatches(bench.announce(b"W", ("a", 1), ("b", 1)))
    assert dispatch.message.model == "b"
    assert dispatches(bench.done(dispatch))[0].message.model == "a"


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_model_whose_name_is_nearly_right_is_suggested(bench: Bench) -> None:
    bench.announce(b"W1", ("detector", 1), ("x" * 100, 1))
    bench.after(5)
    bench.announce(b"W1", ("detector", 1), ("x" * 100, 1))
    asked_for = {"detectro": True, "Detector": True, "nothing": False, "x" * 99: False}
    for number, (asked, suggested) in enumerate(asked_for.items()):
        (error,) = replies(bench.request(number, model=asked))
        assert error.code == "NOT_FOUND"
        assert error.text.endswith("; did you mean 'detector'?") is suggested


def test_an_unknown_model_is_not_found_and_the_error_lists_what_is_served(bench: Bench) -> None:
    bench.announce(b"W", ("ocr", 1), ("ocr", 2), ("echo", 1))
    bench.after(5)
    bench.announce(b"W", ("ocr", 1), ("ocr", 2), ("echo", 1))
    (error,) = replies(bench.request(model="ocd"))
    assert error.code == "NOT_FOUND"
    assert "'ocd'" in error.text
    assert "echo (version 1), ocr (versions 1, 2)" in error.text
    (error,) = replies(bench.request(model="ocr", version=3))
    assert (error.code, "version 3" in error.text) == ("NOT_FOUND", True)


def test_a_young_broker_gives_workers_time_to_announce_even_unknown_models(bench: Bench) -> None:
    assert bench.request(1, model="x") == []
    assert codes(bench.after(1.9)) == []
    bench.announce()
    assert codes(bench.after(0.2)) == ["NOT_FOUND"]


def test_before_the_first_worker_comes_no_model_is_not_found(bench: Bench) -> None:
    """The order in which programs start does not matter, and workers may take long to load."""
    bench.after(60)
    assert bench.request(1) == []
    (error,) = replies(bench.after(2.1))
    assert (error.code, "yet" in error.text) == ("UNAVAILABLE", True)


def test_a_model_that_lost_its_last_worker_is_unavailable_after_a_grace(bench: Bench) -> None:
    bench.announce()
    bench.handle(Undelivered(ToWorker(b"W1", wire.Probe()), False))
    bench.after(10)
    assert bench.request() == []
    assert codes(bench.after(1.9)) == []
    assert codes(bench.after(0.2)) == ["UNAVAILABLE"]


@pytest.mark.parametrize(
    ("many", "sessions", "nbytes", "says"),
    [
        (4, 1, 1, "of this client"),
        (6, 6, 1, "wait for model"),
        (2, 2, 400, "exceed 1000"),
    ],
)
def test_queues_are_bounded(bench: Bench, many: int, sessions: int, nbytes: int, says: str) -> None:
    for n in range(many):
        assert bench.request(n + 1, bytes([n % sessions]) * 16, payload=[b"x" * nbytes]) == []
    (error,) = replies(bench.request(99, bytes(16), payload=[b"x" * nbytes]))
    assert error.code == "RESOURCE_EXHAUSTED"
    assert says in error.text


def test_the_total_over_all_models_is_bounded(bench: Bench) -> None:
    for n in range(8):
        bench.request(1, bytes([n]) * 16, model=f"m{n % 2}")
    assert codes(bench.request(1, b"x" * 16, model="m3")) == ["RESOURCE_EXHAUSTED"]


def test_a_full_queue_for_one_model_does_not_keep_another_from_a_free_worker(bench: Bench) -> None:
    for n in range(8):
        bench.request(1, bytes([n]) * 16, model=f"m{n % 2}")
    bench.announce(b"W", ("free", 1))
    assert dispatches(bench.request(1, b"x" * 16, model="free"))


def test_an_error_is_never_longer_than_its_receiver_takes(bench: Bench) -> None:
    bench.announce(b"W", *(("x" * 120 + str(n), 1) for n in range(50)))
    bench.now += 5
    (error,) = replies(bench.request(model="unknown"))
    wire.decode(wire.encode(error), wire.TO_CLIENT)


# --- fairness under floods ----------------------------------------------------------------------------------


def test_a_client_that_floods_makes_room_for_one_that_does_not(bench: Bench) -> None:
    """Two clients fill the queue of a model. A third gets the newest place of the client with the most."""
    for n in range(4):
        bench.request(n + 1, ALICE)
    for n in range(2):
        bench.request(n + 1, BOB)
    actions = bench.request(1, CAROL)
    (error,) = replies(actions)
    assert (error.session, error.id, error.code) == (ALICE, 4, "RESOURCE_EXHAUSTED")
    assert wire.Key(CAROL, 1) in bench.core.ledger.requests


def test_a_client_with_its_part_of_a_full_queue_is_refused_without_harm_to_others(bench: Bench) -> None:
    for n in range(3):
        bench.request(n + 1, ALICE)
        bench.request(n + 1, BOB)
    (error,) = replies(bench.request(9, ALICE))
    assert (error.session, error.id, error.code) == (ALICE, 9, "RESOURCE_EXHAUSTED")
    assert len(bench.core.ledger.requests) == 6


def test_the_least_urgent_request_of_the_client_with_the_most_gives_way(bench: Bench) -> None:
    bench.request(1, ALICE, priority=-1)
    for n in (2, 3, 4):
        bench.request(n, ALICE)
    bench.request(1, BOB)
    bench.request(2, BOB)
    (error,) = replies(bench.request(1, CAROL))
    assert (error.session, error.id) == (ALICE, 1)


def test_bytes_are_shared_like_places(bench: Bench) -> None:
    for n in (1, 2, 3):
        bench.request(n, ALICE, payload=[b"x" * 300])
    actions = bench.request(1, BOB, payload=[b"x" * 450])
    assert [(e.session, e.id) for e in replies(actions)] == [(ALICE, 3), (ALICE, 2)]
    (error,) = replies(bench.request(2, BOB, payload=[b"x" * 300]))
    assert (error.session, error.id) == (BOB, 2)


def test_a_backlog_for_one_model_does_not_keep_anothers_clients_waiting(bench: Bench) -> None:
    for n in range(4):
        bench.request(n + 1, ALICE, model="a")
    bench.now += 1
    bench.request(1, BOB, model="b")
    (dispatch,) = dispatches(bench.announce(b"W", ("a", 1), ("b", 1)))
    order = [dispatch.message.model]
    while following := dispatches(bench.done(dispatch)):
        (dispatch,) = following
        order.append(dispatch.message.model)
    assert order == ["a", "b", "a", "a", "a"]


# --- stories ------------------------------------------------------------------------------------------------


def test_a_request_has_a_history(bench: Bench) -> None:
    bench.request(1)
    bench.now += 1
    bench.announce(b"W1")
    bench.handle(Undelivered(ToWorker(b"W1", wire.Probe()), False))
    bench.announce(b"W2")
    bench.now += 1
    bench.after(60)
    steps = [line.split(None, 1) for line in bench.core.ledger.history(wire.Key(ALICE, 1))]
    assert [text for _, text in steps] == [
        "accepted: m", "queued", "dispatched: W1", "lost: W1", "queued", "dispatched: W2", "expired",
    ]  # fmt: skip
    assert [time for time, _ in steps[:3]] == ["0.000", "0.000", "1.000"]
    assert bench.core.ledger.history(b"W1")[-1].endswith("lost: its connection is gone")


def test_a_request_has_no_history_while_all_goes_well(bench: Bench) -> None:
    bench.announce()
    key = wire.Key(ALICE, 1)
    (dispatch,) = dispatches(bench.request(1))
    assert not bench.core.ledger._history.of(key)
    bench.done(dispatch)
    assert bench.core.ledger.history(key) == []
    bench.request(2)
    steps = [line.split(None, 1)[1] for line in bench.core.ledger.history(wire.Key(ALICE, 2))]
    assert steps == ["accepted: m", "dispatched: W1"], "one that is under way is asked about"


def test_a_request_that_comes_again_after_it_expired_takes_its_own_place(bench: Bench) -> None:
    bench.announce(slots=2)
    bench.request(1, budget=1, payload=[b"head", b"12345"])
    assert codes(bench.after(2)) == ["DEADLINE_EXCEEDED"]
    bench.request(1, payload=[b"head", b"123"])
    (worker,) = bench.core.ledger.workers.values()
    assert len(worker.held) == 1 and worker.nbytes == 7


# --- deadlines and canceling --------------------------------------------------------------------------------


def test_a_request_that_expires_in_the_queue_is_never_dispatched(bench: Bench) -> None:
    bench.announce()
    (busy,) = dispatches(bench.request(1))
    bench.request(2, budget=1)
    assert codes(bench.after(1.01)) == ["DEADLINE_EXCEEDED"]
    assert dispatches(bench.done(busy)) == []


def test_a_request_that_expires_in_flight_is_answered_on_time_and_its_late_result_dropped(bench: Bench) -> None:
    bench.announce()
    (dispatch,) = dispatches(bench.request(1, budget=1))
    actions = bench.after(1.01)
    assert codes(actions) == ["DEADLINE_EXCEEDED"]
    assert ToWorker(b"W1", wire.Revoke(ALICE, 1, 1)) in actions
    assert bench.request(2) == [], "the slot is taken until the worker answers"
    actions = bench.done(dispatch)
    assert replies(actions) == []
    assert [d.message.id for d in dispatches(actions)] == [2]
    assert bench.core.ledger.counts["late"] == 1


def test_a_request_without_time_left_is_not_begun(bench: Bench) -> None:
    bench.announce()
    assert codes(bench.request(budget=0)) == ["DEADLINE_EXCEEDED"]


def test_a_request_that_expired_with_its_worker_is_not_given_to_another(bench: Bench) -> None:
    """A broker that was not scheduled for a while finds both due. The simulation found this with seed 3135."""
    bench.announce(b"W1", slots=2)
    bench.request(1, budget=1)
    bench.request(2, budget=11.5)
    bench.after(8)
    bench.announce(b"W2")
    bench.now += 4
    assert dispatches(bench.handle(Tick())) == []


def test_a_result_that_comes_with_its_deadline_is_late(bench: Bench) -> None:
    bench.announce()
    (dispatch,) = dispatches(bench.request(1, budget=1))
    bench.now += 1
    assert [type(m) for m in replies(bench.done(dispatch))] == [wire.Error]


def test_cancelling_takes_a_queued_request_out(bench: Bench) -> None:
    bench.announce()
    (busy,) = dispatches(bench.request(1))
    bench.request(2)
    assert codes(bench.handle(FromClient(b"a", wire.Cancel(ALICE, 2), []))) == ["CANCELLED"]
    assert dispatches(bench.done(busy)) == []


def test_cancelling_what_is_not_there_does_nothing(bench: Bench) -> None:
    assert bench.handle(FromClient(b"a", wire.Cancel(ALICE, 2), [])) == []


# --- workers that go ----------------------------------------------------------------------------------------


def test_a_request_whose_worker_is_lost_runs_on_another(bench: Bench) -> None:
    bench.announce(b"W1")
    (dispatch,) = dispatches(bench.request())
    bench.announce(b"W2")
    (again,) = dispatches(bench.handle(Undelivered(ToWorker(b"W1", wire.Probe()), False)))
    assert again.peer == b"W2"
    assert again.message.attempt == 2
    assert bench.done(dispatch) == [ToWorker(b"W1", wire.Identify())], "the lost one's answer is late"
    assert [type(m) for m in replies(bench.done(again))] == [wire.Result]


def test_the_payloads_that_a_lost_worker_held_are_not_kept(bench: Bench) -> None:
    """Nor until the next garbage collection, which is rare: the broker grew in the soak test by 0.6 MB/min."""
    frame = memoryview(b"large")
    kept = weakref.ref(frame)
    bench.announce(b"W1", slots=2)
    bench.request(1, budget=1)
    bench.request(2, payload=[frame])
    assert codes(bench.after(1.01)) == ["DEADLINE_EXCEEDED"]
    bench.announce(b"W2")
    gc.disable()
    try:
        (again,) = dispatches(bench.handle(Undelivered(ToWorker(b"W1", wire.Probe()), False)))
        bench.done(again)
        bench.seen.clear()
        del frame, again
        assert kept() is None
    finally:
        gc.enable()


def test_a_request_that_takes_down_worker_after_worker_is_given_up(bench: Bench) -> None:
    bench.request()
    for n in (1, 2, 3):
        peer = b"W%d" % n
        assert len(dispatches(bench.announce(peer))) == 1
        actions = bench.handle(Undelivered(ToWorker(peer, wire.Probe()), False))
    (error,) = replies(actions)
    assert error.code == "ABORTED"
    assert "W1, W2, W3" in error.text


def test_a_request_that_was_given_up_is_not_run_again_when_its_client_did_not_get_the_answer(bench: Bench) -> None:
    bench.request()
    for n in (1, 2, 3):
        bench.announce(b"W%d" % n)
        bench.handle(Undelivered(ToWorker(b"W%d" % n, wire.Probe()), False))
    bench.announce(b"W4")
    (reply,) = bench.request(peer=b"new")
    assert reply.peer == b"new"
    assert reply.message.code == "ABORTED"
    bench.seen.remove(reply)  # the same reply, to the client that sent the request again
    assert dispatches(bench.request(2)), "another request of the same client runs"


def test_a_request_that_only_waited_at_a_lost_worker_is_not_to_blame(bench: Bench) -> None:
    bench.request(1)
    bench.request(2)
    for n in range(1, 4):
        bench.announce(b"W%d" % n, slots=2)
        actions = bench.handle(Undelivered(ToWorker(b"W%d" % n, wire.Probe()), False))
    assert codes(actions) == ["ABORTED"]
    (dispatch,) = dispatches(bench.announce(b"W4", slots=2))
    assert dispatch.message.id == 2


def test_a_busy_worker_may_be_silent_for_as_long_as_it_computes(bench: Bench) -> None:
    bench.announce()
    (dispatch,) = dispatches(bench.request(budget=40))
    actions = bench.after(30)
    assert ToWorker(b"W1", wire.Probe()) in actions
    assert replies(actions) == []
    assert [type(m) for m in replies(bench.done(dispatch))] == [wire.Result]


def test_an_idle_worker_that_says_nothing_is_given_nothing_until_it_is_heard(bench: Bench) -> None:
    """It may be busy for another broker, or be loading a model. Its model is still served, and requests wait for it."""
    bench.announce()
    bench.after(4)
    assert bench.request() == []
    assert codes(bench.after(3)) == []
    (dispatch,) = dispatches(bench.handle(FromWorker(b"W1", wire.Heartbeat(), [])))
    assert dispatch.message.id == 1


def test_an_idle_worker_that_says_nothing_for_long_is_lost(bench: Bench) -> None:
    bench.announce()
    for _ in range(3):
        bench.after(2)
        bench.handle(FromWorker(b"W1", wire.Heartbeat(), []))
    bench.after(POLICY.patience + POLICY.hang_grace + 1)
    assert not bench.core.ledger.workers
    assert bench.handle(FromWorker(b"W1", wire.Heartbeat(), [])) == [ToWorker(b"W1", wire.Identify())]


def test_any_message_of_a_worker_counts_as_a_heartbeat(bench: Bench) -> None:
    bench.announce()
    bench.after(4)
    bench.announce()
    assert dispatches(bench.request())


def test_a_goodbye_of_a_worker_that_is_not_known_is_answered_as_one(bench: Bench) -> None:
    """It is leaving: an Identify would make it announce itself."""
    assert bench.handle(FromWorker(b"W9", wire.Goodbye(), [])) == [ToWorker(b"W9", wire.Farewell())]


def test_a_worker_with_fewer_slots_than_it_holds_is_given_nothing_more(bench: Bench) -> None:
    bench.announce(slots=3)
    held = [dispatches(bench.request(n))[0] for n in (1, 2, 3)]
    bench.announce(slots=1)
    assert bench.request(4) == []
    assert dispatches(bench.done(held[0])) == dispatches(bench.done(held[1])) == []
    assert [d.message.id for d in dispatches(bench.done(held[2]))] == [4]


def test_a_worker_with_an_older_version_helps_out_only_while_the_others_are_full(bench: Bench) -> None:
    bench.announce(b"old", ("m", 1), slots=2)
    bench.announce(b"new", ("m", 1), ("m", 2), slots=2)
    bench.announce(b"newer", ("m", 1), ("m", 2))
    given = [dispatches(bench.request(n))[0] for n in range(1, 6)]
    assert [d.peer for d in given] == [b"new", b"newer", b"new", b"old", b"old"]
    assert [d.message.version for d in given] == [2, 2, 2, 1, 1]
    assert bench.request(6, session=BOB) == []
    assert bench.request(7, session=BOB, version=2) == []
    # A request for a version number goes to the first free worker that has it.
    assert [d.message.id for d in dispatches(bench.done(given[3]))] == [6]
    assert [d.message.id for d in dispatches(bench.done(given[0]))] == [7]


def test_when_the_latest_version_goes_what_waits_for_it_runs_on_the_one_before(bench: Bench) -> None:
    bench.announce(b"old", ("m", 1))
    for peer in (b"new", b"newer"):
        bench.announce(peer, ("m", 1), ("m", 2))
    for number in range(1, 4):
        bench.request(number)
    assert bench.request(4) == []
    for peer in (b"newer", b"new"):
        actions = bench.handle(Undelivered(ToWorker(peer, wire.Probe()), False))
        assert dispatches(actions) == []
    again = dispatches(bench.announce(b"old", ("m", 1), slots=4))
    assert [(d.message.id, d.message.version) for d in again] == [(1, 1), (2, 1), (4, 1)]


X1, X2 = (signature_of([TensorSpec("x", "FP32", (n,))], ()) for n in (1, 2))


def announce_of_shapes(bench: Bench, peer: bytes, *versions: tuple[int, int]) -> list[Action]:
    """(version, extent of its input)."""
    body = [
        {
            "name": "m",
            "version": version,
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [extent]}],
            "outputs": [],
        }
        for version, extent in versions
    ]
    return bench.handle(FromWorker(peer, wire.Announce(peer.decode(), 4), [encode_body(body)]))


def ask(bench: Bench, number: int, signature: bytes) -> list[Action]:
    message = wire.Request(ALICE, number, "m", 0, 10**7, 0, signature)
    return bench.handle(FromClient(b"a", message, [b"head"]))


def test_a_version_that_does_not_fit_what_a_device_was_built_for_is_not_chosen_for_it(bench: Bench) -> None:
    announce_of_shapes(bench, b"W1", (1, 1), (2, 1), (3, 2))
    assert dispatches(ask(bench, 2, X1))[0].message.version == 2
    assert dispatches(ask(bench, 3, X2))[0].message.version == 3
    assert dispatches(ask(bench, 4, b""))[0].message.version == 3, "without a signature, the latest version runs"


def test_where_no_version_fits_the_error_says_what_is_served(bench: Bench) -> None:
    announce_of_shapes(bench, b"W1", (1, 1), (3, 1))
    bench.after(POLICY.worker_grace)
    (error,) = replies(ask(bench, 1, X2))
    assert error.code == "FAILED_PRECONDITION"
    assert "no served version of model 'm' fits" in error.text
    assert "version 3 takes x FP32[1] and returns nothing; version 1 takes" in error.text


def test_a_version_that_fitted_and_went_is_waited_for_like_a_lost_one(bench: Bench) -> None:
    announce_of_shapes(bench, b"W1", (1, 2))
    announce_of_shapes(bench, b"W1", (3, 1))
    assert ask(bench, 1, X2) == []
    assert codes(bench.after(POLICY.worker_grace)) == ["FAILED_PRECONDITION"]
    assert ask(bench, 2, X2) == []
    announced = announce_of_shapes(bench, b"W2", (2, 2))
    assert [d.message.version for d in dispatches(announced)] == [2]


# --- frames that are too large ------------------------------------------------------------------------------


def announce_taking(bench: Bench, peer: bytes, most: int, slots: int = 1) -> list[Action]:
    body = [{"name": "m", "version": 1, "inputs": [], "outputs": []}]
    return bench.handle(FromWorker(peer, wire.Announce(peer.decode(), slots, most), [encode_body(body)]))


def test_a_request_that_no_worker_takes_is_refused_at_once_and_both_limits_named(bench: Bench) -> None:
    announce_taking(bench, b"W1", 100)
    announce_taking(bench, b"W2", 200)
    (error,) = replies(bench.request(1, payload=[b"head", b"x" * 201]))
    assert error.code == "INVALID_ARGUMENT"
    assert "a frame of 201 bytes; the workers of 'm' take at most 200" in error.text
    assert f"this broker {bench.core.ledger.max_frame_bytes}" in error.text
    assert any("201 bytes" in text for _, text in bench.core.ledger.notes.take())
    assert bench.core.ledger.counts["lost_workers"] == 0


def test_a_request_goes_to_a_worker_that_takes_its_frames(bench: Bench) -> None:
    announce_taking(bench, b"small", 100, slots=4)
    announce_taking(bench, b"large", 200)
    (large,) = dispatches(bench.request(1, payload=[b"x" * 150]))
    assert large.peer == b"large"
    assert bench.request(2, payload=[b"x" * 150]) == [], "it waits for the worker that takes its frames"
    (small,) = dispatches(bench.request(3, payload=[b"x"]))
    assert small.peer == b"small", "and no other request waits for that"
    assert [d.message.id for d in dispatches(bench.done(large))] == [2]


def test_a_request_that_waits_fails_when_the_last_worker_that_takes_it_goes(bench: Bench) -> None:
    announce_taking(bench, b"small", 100)
    announce_taking(bench, b"large", 200)
    bench.request(1, payload=[b"x" * 150])
    bench.request(2, payload=[b"x" * 150])
    actions = bench.handle(FromWorker(b"large", wire.Goodbye(), []))
    assert [m.id for m in replies(actions)] == [2]
    assert codes(actions) == ["INVALID_ARGUMENT"]


def test_frames_over_the_brokers_own_limit_and_the_clients_are_refused(bench: Bench) -> None:
    bench.core.ledger.max_frame_bytes = 50
    probe = bench.announce(b"W1", slots=2)[0]
    assert probe == ToWorker(b"W1", wire.Probe(50)), "a worker knows the limit before its first Dispatch"
    (error,) = replies(bench.request(1, payload=[b"x" * 51]))
    assert error.code == "INVALID_ARGUMENT"
    assert "this broker takes at most 50 (--max-frame-bytes), the client 268435456 (max_frame_bytes)" in error.text
    message = wire.Request(ALICE, 2, "m", 0, 10**7, 0, b"", 20)
    (dispatch,) = dispatches(bench.handle(FromClient(b"a", message, [b"head"])))
    (error,) = replies(bench.done(dispatch, [b"x" * 21]))
    assert error.code == "INVALID_ARGUMENT"
    assert (
        "outputs have a frame of 21 bytes; the client takes at most 20 (max_frame_bytes), this broker 50" in error.text
    )
    (pong,) = bench.handle(FromClient(b"a", wire.Ping(ALICE, []), []))
    assert pong.message == wire.Pong(ALICE, [], 50)


# --- workers and versions that come and go ------------------------------------------------------------------


def test_the_grace_of_a_model_without_workers_is_not_prolonged_by_other_losses(bench: Bench) -> None:
    bench.announce(b"W1", ("m", 1))
    bench.request(1, model="m")
    bench.request(2, model="m")
    bench.handle(Undelivered(ToWorker(b"W1", wire.Probe()), False))
    actions = []
    for n in range(6):
        bench.announce(b"X%d" % n, ("n", 1))
        actions += bench.after(0.9)
        bench.handle(Undelivered(ToWorker(b"X%d" % n, wire.Probe()), False))
    assert [(m.id, m.code) for m in replies(actions)] == [(2, "UNAVAILABLE")], "1 was at the worker that was lost"


def test_a_request_that_lost_the_only_worker_waits_for_it_to_come_back_until_its_deadline(bench: Bench) -> None:
    bench.announce(b"W1")
    bench.request(1, budget=60)
    bench.handle(Undelivered(ToWorker(b"W1", wire.Probe()), False))
    assert bench.after(59) == []
    (again,) = dispatches(bench.announce(b"W2"))
    assert again.message.attempt == 2
    bench.handle(Undelivered(ToWorker(b"W2", wire.Probe()), False))
    (error,) = replies(bench.after(2))
    assert error.code == "DEADLINE_EXCEEDED"
    assert "while waiting for a worker; it lost W1, W2, and none came back" in error.text


def test_what_takes_down_the_only_worker_again_and_again_is_given_up_and_the_others_are_served(bench: Bench) -> None:
    bench.announce(b"W1")
    bench.request(1)
    bench.request(2, session=BOB, budget=60)
    for n in (2, 3):
        bench.handle(Undelivered(ToWorker(b"W%d" % (n - 1), wire.Probe()), False))
        assert replies(bench.after(POLICY.restart_grace - 0.1)) == [], "a supervisor may need that long"
        assert [d.message.id for d in dispatches(bench.announce(b"W%d" % n))] == [1]
    actions = bench.handle(Undelivered(ToWorker(b"W3", wire.Probe()), False))
    assert codes(actions) == ["ABORTED"]
    assert [d.message.id for d in dispatches(bench.announce(b"W4"))] == [2]


def test_where_a_worker_was_lost_moments_ago_new_requests_wait_for_it_too(bench: Bench) -> None:
    bench.announce()
    bench.handle(Undelivered(ToWorker(b"W1", wire.Probe()), False))
    bench.after(1)
    assert bench.request() == []
    assert codes(bench.after(POLICY.restart_grace - 1.1)) == []
    assert codes(bench.after(0.2)) == ["UNAVAILABLE"]


def test_no_request_waits_for_a_worker_whose_key_was_revoked() -> None:
    core = Core(POLICY, 0.0, queue_limits=LIMITS)
    core.handle(Authorized({"c": Grant("c")}, {"w": Grant("w")}), 100.0)
    body = encode_body([{"name": "m", "version": 1, "inputs": [], "outputs": []}])
    core.handle(FromWorker(b"W", wire.Announce("W", 1), [body], "w"), 100.0)
    core.handle(Authorized({"c": Grant("c")}, {}), 100.0)
    core.handle(FromClient(b"a", wire.Request(ALICE, 1, "m", 0, 10**7, 0), [b"head"], "c"), 100.0)
    assert codes(core.handle(Tick(), 100.0 + POLICY.worker_grace)) == ["UNAVAILABLE"]


def test_a_worker_that_hangs_is_lost_and_what_waits_there_goes_on(bench: Bench) -> None:
    bench.announce(b"W1", slots=2)
    bench.request(1, budget=1)
    bench.request(2, budget=50)
    bench.after(5)
    bench.announce(b"W2")
    actions = []
    for _ in range(5):
        bench.handle(FromWorker(b"W2", wire.Heartbeat(), []))
        actions += bench.after(2)
    (again,) = dispatches(actions)
    assert (again.peer, again.message.id) == (b"W2", 2)


def test_a_broken_connection_makes_the_broker_look_after_all_workers(bench: Bench) -> None:
    bench.announce(b"W1")
    bench.announce(b"W2")
    assert {a.peer for a in bench.handle(Disconnected())} == {b"W1", b"W2"}


def test_a_worker_that_says_goodbye_finishes_what_it_holds_and_gets_no_more(bench: Bench) -> None:
    bench.announce()
    (dispatch,) = dispatches(bench.request(1))
    assert bench.handle(FromWorker(b"W1", wire.Goodbye(), [])) == [ToWorker(b"W1", wire.Farewell())]
    bench.request(2)
    actions = bench.done(dispatch)
    assert [type(m) for m in replies(actions)] == [wire.Result]
    assert dispatches(actions) == []
    bench.handle(Undelivered(ToWorker(b"W1", wire.Probe()), False))
    assert bench.core.ledger.counts["lost_workers"] == 0


def test_a_worker_that_announces_again_serves_its_last_announcement(bench: Bench) -> None:
    bench.announce(b"W1", ("m", 1))
    bench.announce(b"W1", ("m", 2), ("n", 1))
    (dispatch,) = dispatches(bench.request())
    assert dispatch.message.version == 2
    assert codes(bench.request(2, version=1)) == []
    assert codes(bench.after(2.1)) == ["UNAVAILABLE"]


def test_a_version_that_is_taken_away_while_a_request_is_on_its_way_does_not_fail_it(bench: Bench) -> None:
    bench.announce(b"W1", ("m", 1), ("m", 2))
    (dispatch,) = dispatches(bench.request())
    assert dispatch.message.version == 2
    bench.announce(b"W1", ("m", 1))
    failed = wire.Failed(*key_of(dispatch), "NOT_FOUND", "no longer served")
    (again,) = dispatches(bench.handle(FromWorker(b"W1", failed, [])))
    assert (again.message.version, again.message.attempt) == (1, 2)
    assert [type(m) for m in replies(bench.done(again))] == [wire.Result]


def test_a_pinned_version_that_is_taken_away_is_said_to_be_unavailable(bench: Bench) -> None:
    bench.announce(b"W1", ("m", 1), ("m", 2))
    (dispatch,) = dispatches(bench.request(version=2))
    bench.announce(b"W1", ("m", 1))
    bench.handle(FromWorker(b"W1", wire.Failed(*key_of(dispatch), "NOT_FOUND", "no longer served"), []))
    assert codes(bench.after(2.1)) == ["UNAVAILABLE"]


# --- clients that reconnect ---------------------------------------------------------------------------------


def test_a_request_that_is_sent_again_is_not_run_twice_and_answers_the_new_connection(bench: Bench) -> None:
    bench.announce()
    (dispatch,) = dispatches(bench.request(1, peer=b"old"))
    assert bench.request(1, peer=b"new") == []
    (reply,) = bench.done(dispatch)
    assert reply.peer == b"new"


def test_a_ping_moves_requests_to_its_connection_and_names_those_that_are_not_here(bench: Bench) -> None:
    bench.announce()
    (dispatch,) = dispatches(bench.request(1, peer=b"old"))
    (pong,) = bench.handle(FromClient(b"new", wire.Ping(ALICE, [1, 2]), []))
    assert pong == ToClient(b"new", wire.Pong(ALICE, [2]))
    assert bench.done(dispatch)[0].peer == b"new"


# --- the end, and the odd -----------------------------------------------------------------------------------


def test_a_broker_that_stops_finishes_what_it_has_and_takes_no_more(bench: Bench) -> None:
    bench.announce()
    (dispatch,) = dispatches(bench.request(1))
    bench.request(2)
    bench.handle(Stop(5))
    assert codes(bench.request(3)) == ["UNAVAILABLE"]
    (following,) = dispatches(bench.done(dispatch))
    assert not bench.core.finished
    bench.done(following)
    assert bench.core.finished


def test_what_is_not_done_within_the_grace_is_told_so(bench: Bench) -> None:
    bench.announce()
    bench.request(1)
    bench.request(2)
    bench.handle(Stop(5))
    assert codes(bench.after(5.1)) == ["UNAVAILABLE", "UNAVAILABLE"]
    assert bench.core.finished


def test_what_is_no_message_is_answered_and_changes_nothing(bench: Bench) -> None:
    error = ProtocolError("nonsense")
    (answer,) = bench.handle(Malformed(b"a", True, error))
    assert answer == ToClient(b"a", wire.Error(bytes(16), 0, "INVALID_ARGUMENT", "nonsense"))
    error.key = (ALICE, 7)
    (answer,) = bench.handle(Malformed(b"a", True, error))
    assert answer.message[:2] == (ALICE, 7)
    (answer,) = bench.handle(Malformed(b"w", False, error))
    assert isinstance(answer, ToWorker)


@pytest.mark.parametrize(
    "body",
    [{}, [1], [{"name": "m"}], [{"name": "", "version": 1}], [{"name": "m", "version": 0}],
     [{"name": "m", "version": 1, "inputs": [], "outputs": [{"name": "x", "datatype": "FP33", "shape": []}]}],
     [{"name": "m", "version": 1, "inputs": [], "outputs": [], "max_batch": 0}],
     [{"name": "m", "version": 1, "inputs": [], "outputs": [], "max_batch": None}]],
)  # fmt: skip
def test_an_announcement_that_makes_no_sense_is_refused(bench: Bench, body: Any) -> None:
    (answer,) = bench.handle(FromWorker(b"W1", wire.Announce("W1", 1), [encode_body(body)]))
    assert isinstance(answer.message, wire.Error)
    assert not bench.core.ledger.workers


def test_clients_learn_the_largest_batch_of_a_model(bench: Bench) -> None:
    body = [{"name": name, "version": 1, "inputs": [], "outputs": []} for name in ("a", "b")]
    bench.handle(FromWorker(b"W1", wire.Announce("W1", 1), [encode_body([body[0], body[1] | {"max_batch": 8}])]))
    (answer,) = bench.handle(FromClient(b"a", wire.Query(ALICE, 1, "models"), []))
    assert [model.get("max_batch") for model in decode_body(answer.payload, "models")] == [None, 8]


def test_an_answer_to_an_attempt_that_the_worker_does_not_hold_is_dropped(bench: Bench) -> None:
    bench.announce(b"W1")
    bench.announce(b"W2")
    (dispatch,) = dispatches(bench.request())
    other = b"W2" if dispatch.peer == b"W1" else b"W1"
    assert bench.handle(FromWorker(other, wire.Done(ALICE, 1, 1, 0), [])) == []
    assert bench.handle(FromWorker(dispatch.peer, wire.Done(ALICE, 1, 2, 0), [])) == []
    assert [type(m) for m in replies(bench.done(dispatch))] == [wire.Result]


def test_status_and_models_tell_what_is_there(bench: Bench) -> None:
    bench.announce(b"W1", ("m", 1), ("m", 2))
    (dispatch,) = dispatches(bench.request(1))
    bench.done(dispatch)
    (dispatch,) = dispatches(bench.request(2))
    bench.handle(FromWorker(b"W1", wire.Failed(*key_of(dispatch), "INTERNAL", "it broke"), []))
    bench.request(3)
    bench.request(4, payload=[b"12345"])
    (answer,) = bench.handle(FromClient(b"a", wire.Query(ALICE, 9, "status"), []))
    status = decode_body(answer.payload, "")
    assert status["requests"] | {"refused": {}} == {
        "accepted": 4, "outstanding": 2, "queued": 1, "queued_bytes": 5, "served": 1, "failed": {"INTERNAL": 1},
        "refused": {}, "retried": 0,
    }  # fmt: skip
    assert status["workers"][0]["models"] == ["m:1", "m:2"]
    assert status["queues"] == [{"model": "m", "version": 0, "queued": 1, "bytes": 5}]
    (answer,) = bench.handle(FromClient(b"a", wire.Query(ALICE, 9, "models"), []))
    assert [(m["name"], m["version"], m["workers"]) for m in decode_body(answer.payload, "")] == [
        ("m", 1, 1),
        ("m", 2, 1),
    ]


# --- what the reviewers planted and no test noticed -------------------------------------------------------------


def test_a_stopping_broker_gives_nothing_new_to_a_worker_that_is_free(bench: Bench) -> None:
    bench.announce(b"W", slots=4)
    (dispatch,) = dispatches(bench.request(1))
    bench.handle(Stop(5))
    actions = bench.request(2)
    assert dispatches(actions) == []
    assert codes(actions) == ["UNAVAILABLE"]
    assert [type(m) for m in replies(bench.done(dispatch))] == [wire.Result]


def test_a_worker_that_takes_no_more_messages_is_lost(bench: Bench) -> None:
    bench.announce(b"W1")
    (dispatch,) = dispatches(bench.request(1))
    bench.announce(b"W2")
    (again,) = dispatches(bench.handle(Undelivered(dispatch, True)))
    assert again.peer == b"W2"
    assert b"W1" not in bench.core.ledger.workers


def test_all_first_attempts_of_a_lost_worker_are_suspects_and_of_later_ones_the_first(bench: Bench) -> None:
    bench.announce(b"W1", slots=3)
    for number in (1, 2, 3):
        bench.request(number)
    bench.announce(b"W2", slots=3)
    again = dispatches(bench.handle(Undelivered(ToWorker(b"W1", wire.Probe()), False)))
    assert [len(request.lost) for request in bench.core.ledger.requests.values()] == [1, 1, 1]
    bench.announce(b"W3", slots=3)
    bench.handle(Undelivered(ToWorker(b"W2", wire.Probe()), False))
    blamed = [key.id for key, request in bench.core.ledger.requests.items() if len(request.lost) == 2]
    assert blamed == [key_of(again[0])[1]]


# --- what the log says --------------------------------------------------------------------------------------


def said(bench: Bench) -> list[str]:
    return [text for _, text in bench.core.ledger.notes.take()]


def test_a_version_that_is_not_the_latest_yet_is_explained_in_the_log_and_the_status(bench: Bench) -> None:
    """One of two workers cannot load version 2, so that it never becomes the latest."""
    bench.announce(b"W1", ("m", 1), slots=2)
    bench.announce(b"W2", ("m", 1), slots=2)
    bench.core.ledger.notes.take()
    bench.announce(b"W1", ("m", 1), ("m", 2), slots=2)
    bench.announce(b"W1", ("m", 1), ("m", 2), slots=2)
    assert said(bench) == [
        "worker W1 changes: serves m:1, m:2",
        "model 'm': version 2 is not the latest yet; 1 of 2 workers with 2 of 4 slots have it, and it needs more than "
        "half of both. Without it: W2",
    ], "and nothing if nothing changed"
    status = describe_status(bench.core.ledger, bench.now, lambda _: True)
    assert [(m["version"], m["latest"], m["slots"], m["of_slots"]) for m in status["models"]] == [
        (1, True, 4, 4),
        (2, False, 2, 4),
    ]
    lines = [" ".join(line.split()) for line in text(describe(status)).splitlines() if line.startswith("  m ")]
    assert lines == ["m 1 2 yes", "m 2 1 not yet: 1 of 2 workers with 2 of 4 slots have it"]
    bench.announce(b"W2", ("m", 1), ("m", 2), slots=2)
    assert said(bench) == ["worker W2 changes: serves m:1, m:2", "model 'm': version 2 is the latest now"]
    status = describe_status(bench.core.ledger, bench.now, lambda _: True)
    lines = [" ".join(line.split()) for line in text(describe(status)).splitlines() if line.startswith("  m ")]
    assert lines == ["m 1 2", "m 2 2 yes"]


def test_the_log_says_when_workers_come_change_fall_silent_and_go(bench: Bench) -> None:
    body = [{"name": "m", "version": 1, "inputs": [], "outputs": []}]
    bench.handle(FromWorker(b"W1", wire.Announce("one", 2), [encode_body(body)], "", "10.0.0.7"))
    assert said(bench) == ["worker one at 10.0.0.7 came: 2 slots, serves m:1", "model 'm': version 1 is the latest now"]
    body = [{"name": "m", "version": v, "inputs": [], "outputs": []} for v in (1, 2)]
    bench.handle(FromWorker(b"W1", wire.Announce("one", 2), [encode_body(body)], "", "10.0.0.7"))
    bench.handle(FromWorker(b"W1", wire.Announce("one", 2), [encode_body(body)], "", "10.0.0.7"))
    changes = ["worker one at 10.0.0.7 changes: serves m:1, m:2", "model 'm': version 2 is the latest now"]
    assert said(bench) == changes, "and nothing if nothing changed"
    bench.after(POLICY.patience)
    bench.handle(FromWorker(b"W1", wire.Heartbeat(), []))
    silent, heard = said(bench)
    assert "idle and silent for 3.0 s; it is given nothing until it is heard" in silent
    assert heard == "worker one at 10.0.0.7 is heard again"
    bench.request(1)
    bench.handle(Undelivered(ToWorker(b"W1", wire.Probe()), False))
    assert said(bench) == [
        "model 'm': no worker serves it any longer",
        "worker one at 10.0.0.7 is lost: its connection is gone; it held 1 requests",
    ]
    bench.announce(b"W2")
    said(bench)
    bench.handle(FromWorker(b"W2", wire.Goodbye(), []))
    bench.handle(Undelivered(ToWorker(b"W2", wire.Probe()), False))
    assert [line for line in said(bench) if "goodbye" in line] == ["worker W2 says goodbye, with 1 requests"]


def test_the_log_names_requests_that_are_aborted_and_bytes_that_are_no_message(bench: Bench) -> None:
    for n in range(3):
        bench.announce(b"W%d" % n)
        bench.request(1)
        bench.handle(Undelivered(ToWorker(b"W%d" % n, wire.Probe()), False))
    (aborted,) = [line for line in said(bench) if "ABORTED" in line]
    assert "request 61616161/1 for model 'm' is ABORTED: it lost its worker 3 times (W0, W1, W2; the last:" in aborted
    bench.handle(Malformed(b"?", True, ProtocolError("nonsense\x1b[31m"), "10.0.0.9"))
    assert said(bench) == ["bytes of a client at 10.0.0.9 are not a message: nonsense\\x1b[31m"]


def test_a_worker_whose_connection_ended_is_lost_at_once(bench: Bench) -> None:
    bench.announce()
    bench.handle(Disconnected(b"a stranger"))
    assert bench.request() != []
    bench.handle(Disconnected(b"W1"))
    assert not bench.core.ledger.workers


def test_a_worker_says_what_it_is_and_how_much_memory_it_has(bench: Bench) -> None:
    body = encode_body([{"name": "m", "version": 1, "inputs": [], "outputs": []}])
    bench.handle(FromWorker(b"W1", wire.Announce("one", 2, 1 << 20, "cuda:1", 3), [body]))
    bench.handle(FromWorker(b"W1", wire.Heartbeat(5_000_000), []))
    worker = bench.core.ledger.workers[b"W1"]
    assert (worker.device, worker.restarts, worker.memory_bytes) == ("cuda:1", 3, 5_000_000)


@pytest.mark.parametrize(("trace", "kept"), [(b"", b""), (b"u" * 24, b""), (b"u" * 24 + b"\1", b"u" * 24 + b"\1")])
def test_a_request_keeps_its_label_and_a_trace_of_the_right_length(bench: Bench, trace: bytes, kept: bytes) -> None:
    body = [{"name": "m", "version": 1, "inputs": [], "outputs": [], "config": {"labels": ["stable"]}}]
    bench.handle(FromWorker(b"W1", wire.Announce("one", 2), [encode_body(body)]))
    bench.core.ledger.tracing.enabled = True
    bench.handle(FromClient(b"A", wire.Request(ALICE, 1, "m", 0, 10**6, 0, label="stable", trace=trace), []))
    (request,) = bench.core.ledger.requests.values()
    assert (request.label, request.trace) == ("stable", kept)
