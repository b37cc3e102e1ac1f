"""Requests whose time is up are found, though few of them have timers."""

from __future__ import annotations

import random

import pytest

from broker.deadlines import NEAR
from broker.events import Tick
from tests.broker.test_core import ALICE, Bench, bench, codes, dispatches, replies
from zmq_offload.protocol import messages as wire

__all__ = ["bench"]


def test_a_request_with_much_time_has_no_timer_until_it_is_nearly_over(bench: Bench) -> None:
    bench.announce(slots=3)
    key = wire.Key(ALICE, 1)
    bench.request(1, budget=60)
    assert key not in bench.core.ledger.timers
    assert bench.core.ledger.deadlines.first == bench.now + 60
    bench.after(60 - NEAR / 2)
    assert codes(bench.after(NEAR)) == ["DEADLINE_EXCEEDED"]


def test_requests_that_ended_are_looked_at_no_more_than_once(bench: Bench) -> None:
    bench.announce()
    for number in range(50):
        bench.done(dispatches(bench.request(number, budget=20))[0])
    ledger = bench.core.ledger
    assert ledger.deadlines.first == bench.now + 20
    bench.now += 20
    bench.handle(Tick())
    assert len(ledger.timers) == len(ledger.workers) and ledger.deadlines.first > bench.now


def test_each_request_expires_at_its_time(bench: Bench) -> None:
    chance = random.Random(1)
    bench.announce(slots=60)
    due, expired = {}, {}

    def pass_time(seconds: float) -> None:
        end = bench.now + seconds
        while (at := bench.core.next_deadline()) is not None and at <= end:
            bench.now = max(bench.now, at)
            for message in replies(bench.handle(Tick())):
                assert message.code == "DEADLINE_EXCEEDED"
                expired[message.id] = bench.now
        bench.now = end

    for number in range(60):
        pass_time(chance.random() / 10)
        budget = chance.choice([0.1, NEAR / 2, NEAR, 5, 9]) + chance.random()
        bench.request(number, budget=budget)
        due[number] = bench.now + budget
    pass_time(10)
    assert expired == pytest.approx(due, abs=1e-5)
