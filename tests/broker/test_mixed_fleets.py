"""Workers of different speed serve one model: who gets which request, and what waits for whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from broker.events import Disconnected, FromWorker, ToWorker
from broker.ledger import LOOK
from tests.broker.test_core import BOB, Bench, codes, dispatches, replies
from zmq_offload.protocol import messages as wire

QUICK, SLOW = b"Q", b"S"


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A quick worker (10 ms) and a slow one (100 ms) whose times are known, with one slot each, both idle."""
    bench = Bench()
    bench.announce(QUICK)
    bench.announce(SLOW)
    for number in range(1, 13):
        run(bench, number, 0.01 if number % 2 else 0.1)
    assert [len(w.held) for w in bench.core.ledger.workers.values()] == [0, 0]
    assert bench.core.ledger.scheduler.mixed
    yield bench
    assert not bench.core.ledger.scheduler.queues


def run(bench: Bench, number: int, seconds: float) -> None:
    (dispatch,) = dispatches(bench.request(number))
    bench.now += 0.01 if dispatch.peer == QUICK else 0.1
    bench.done(dispatch)


def given(bench: Bench, number: int, **more: object) -> list[bytes]:
    return [d.peer for d in dispatches(bench.request(number, **more))]  # type: ignore[arg-type]


def end(bench: Bench, peer: bytes) -> list[ToWorker]:
    """The worker answers what it holds; what is dispatched because of that."""
    ((session, number, attempt),) = bench.core.ledger.workers[peer].held
    (held,) = (d for d in dispatches(bench.seen) if d.message[:3] == (session, number, attempt))
    return dispatches(bench.done(held))


def finish(bench: Bench) -> None:
    for _ in range(10):
        for peer, worker in bench.core.ledger.workers.items():
            if worker.held:
                bench.now += 0.01
                end(bench, peer)


def test_what_a_quick_worker_does_sooner_waits_for_it(bench: Bench) -> None:
    assert given(bench, 101) == [QUICK]
    assert given(bench, 102) == [], "20 ms with the quick worker, 100 with the slow one"
    bench.now += 0.01
    (dispatch,) = end(bench, QUICK)
    assert dispatch.peer == QUICK and dispatch.message.id == 102
    bench.now += 0.01
    finish(bench)


def test_the_order_of_a_clients_requests_stays(bench: Bench) -> None:
    for number in range(101, 120):
        given(bench, number, session=BOB) if number < 103 else None
    bench.now += 0.01
    assert [d.message.id for d in end(bench, QUICK)] == [102]
    finish(bench)


def test_a_message_of_the_slow_worker_changes_nothing(bench: Bench) -> None:
    given(bench, 101)
    given(bench, 102)
    assert dispatches(bench.handle(FromWorker(SLOW, wire.Heartbeat(), ()))) == []
    finish(bench)


def test_a_quick_worker_that_hangs_keeps_nothing_for_long(bench: Bench) -> None:
    given(bench, 101)
    assert given(bench, 102) == []
    assert [d.peer for d in dispatches(bench.after(0.5))] == [SLOW], "nobody sent a message meanwhile"
    finish(bench)


def test_what_waits_for_a_quick_worker_that_is_lost_goes_to_the_slow_one(bench: Bench) -> None:
    given(bench, 101)
    given(bench, 102)
    assert [d.peer for d in dispatches(bench.handle(Disconnected(QUICK)))] == [SLOW]
    bench.now += 0.1
    assert [d.message.id for d in end(bench, SLOW)], "the other one follows"
    bench.now += 0.1
    finish(bench)


def test_a_deadline_passes_while_a_request_waits_for_a_quick_worker(bench: Bench) -> None:
    given(bench, 101)
    given(bench, 102, budget=0.005)
    assert codes(bench.after(0.006)) == ["DEADLINE_EXCEEDED"]
    finish(bench)


def test_workers_that_become_alike_share_what_waited(bench: Bench) -> None:
    """The quick one is as slow as the other from now on."""
    numbers = iter(range(101, 200))
    for _ in range(6):
        given(bench, next(numbers))
        bench.now += 0.1
        if bench.core.ledger.workers[QUICK].held:
            end(bench, QUICK)
        if bench.core.ledger.workers[SLOW].held:
            end(bench, SLOW)
    assert not bench.core.ledger.scheduler.mixed
    finish(bench)
    assert given(bench, 201) != given(bench, 202)
    finish(bench)


def test_what_is_too_large_for_the_quick_worker_goes_to_the_slow_one_while_others_wait(bench: Bench) -> None:
    bench.core.ledger.workers[SLOW].max_frame_bytes = 10
    assert given(bench, 101) == [QUICK]
    assert given(bench, 102, payload=[b"head", b"x" * 11]) == [], "only the quick one takes it"
    bench.core.ledger.workers[QUICK].paces["m", 1].each = bench.core.ledger.workers[QUICK].paces["m", 1].run = 0.1
    assert given(bench, 103) == [SLOW], "it need not wait behind what the slow one cannot have"
    bench.now += 0.01
    finish(bench)


def test_every_request_is_answered_once(bench: Bench) -> None:
    before = len(replies(bench.seen))
    for number in range(101, 107):
        given(bench, number)
    finish(bench)
    assert len(replies(bench.seen)) - before == 6


def test_a_full_queue_keeps_no_worker_idle(bench: Bench) -> None:
    """A request that is held back is neither refused nor evicted while a slow worker is free."""
    ledger = bench.core.ledger
    ledger.queue_limits = replace(ledger.queue_limits, max_queued_per_model=1)
    assert given(bench, 101) == [QUICK]
    assert given(bench, 102) == []
    (dispatch,) = dispatches(bench.request(103, session=BOB))
    assert dispatch.peer == SLOW and dispatch.message.id == 102, "the first one makes room"
    assert "RESOURCE_EXHAUSTED" in codes(bench.request(104))
    finish(bench)


def test_without_a_queue_a_slow_worker_takes_what_it_can(bench: Bench) -> None:
    ledger = bench.core.ledger
    ledger.queue_limits = replace(ledger.queue_limits, max_queued_per_model=0, max_queued=0)
    assert given(bench, 101) == [QUICK]
    assert given(bench, 102) == [SLOW]
    finish(bench)


def test_the_earliest_look_counts(bench: Bench) -> None:
    ledger = bench.core.ledger
    given(bench, 101)
    ledger.timers.set(LOOK, bench.now + 60)  # for a model whose slow worker takes a minute
    ledger._look_at = bench.now + 60
    given(bench, 102)
    assert [d.peer for d in dispatches(bench.after(0.5))] == [SLOW]
    finish(bench)


def test_a_request_does_not_starve_behind_others_for_the_quick_worker(bench: Bench) -> None:
    """More urgent ones take each of its turns."""
    models = [("m", 1), ("n", 1)]
    bench.announce(QUICK, *models)
    bench.announce(SLOW, ("m", 1))
    given(bench, 101)
    assert given(bench, 102) == []
    for number in range(201, 226):
        given(bench, number, model="n", priority=1)
        bench.after(0.01)
        end(bench, QUICK)
    held = bench.core.ledger.workers[SLOW].held
    assert [number for _, number, _ in held] == [102], "after 0.2 s"
    finish(bench)


def test_the_more_urgent_of_two_queues_is_looked_at_first(bench: Bench) -> None:
    for peer in (QUICK, SLOW):
        bench.announce(peer, ("m", 1), ("n", 1))
        paces = bench.core.ledger.workers[peer].paces
        paces["n", 1] = replace(paces["m", 1])
    bench.announce(SLOW, ("m", 1), ("n", 1))
    assert len(bench.core.ledger.scheduler.mixed) == 6
    given(bench, 101)
    given(bench, 102)
    given(bench, 103, model="n", priority=1)
    assert [wanted.model for wanted in bench.core.ledger.scheduler.waiting()] == ["n", "m"]
    (dispatch,) = dispatches(bench.after(0.5))
    assert dispatch.message.id == 103
    finish(bench)
