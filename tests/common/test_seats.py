"""Which processes a supervisor starts, ends and kills, in a time of the test's own."""

from __future__ import annotations

import math
import random
import signal

import pytest

from zmq_offload.common.seats import Seats


def running(count: int, **options: float) -> Seats:
    """Seats whose processes were started at 0."""
    seats = Seats(count, **options)  # type: ignore[arg-type]
    for at in seats.due(0):
        seats.started(at, 0)
    return seats


def test_a_process_is_started_in_each_seat_and_nothing_is_due_while_they_run() -> None:
    seats = Seats(2)
    assert seats.due(0) == [0, 1]
    seats.started(1, 0)
    assert seats.due(0) == [0] and seats.next_deadline() == 0
    seats.started(0, 0)
    assert seats.due(9) == [] and seats.next_deadline() == math.inf
    assert [seats.starts(at) for at in range(2)] == [1, 1]


def test_one_that_ends_is_started_again_at_once_and_more_slowly_if_it_keeps_ending() -> None:
    seats = running(2)
    waits = []
    now = 100.0
    for _ in range(4):
        wait = seats.ended(1, 1, now)
        assert wait is not None
        waits.append(wait)
        assert seats.next_deadline() == now + wait
        assert not wait or seats.due(now + wait / 2) == []
        now += wait
        assert seats.due(now) == [1]
        seats.started(1, now)
    assert waits == [0, 0.1, 0.2, 0.4]
    assert seats.starts(1) == 5 and seats.starts(0) == 1
    assert not seats.stopping and not seats.failed


def test_one_that_cannot_be_started_counts_as_one_that_ended_at_once() -> None:
    seats = Seats(1, must_be_ready=True)
    assert [seats.not_started(0, 50) for _ in range(4)] == [0, 0.1, 0.2, 0.4]
    assert seats.next_deadline() == 50.4 and seats.due(50.3) == [] and seats.due(50.4) == [0]
    assert seats.starts(0) == 0 and not seats.stopping, "what the system lacks does not mean that it cannot serve"


def test_the_end_before_it_was_ready_stops_all_where_that_is_asked_for() -> None:
    seats = running(2, must_be_ready=True)
    seats.ready(0)
    assert seats.ended(0, 1, 5) == 0, "this one had served"
    seats.started(0, 5)
    assert seats.ended(0, 1, 6) is not None, "the seat was ready once"
    assert seats.ended(1, 1, 6) is None
    assert seats.stopping and seats.failed and seats.finished


def test_a_stop_tells_each_once_and_starts_none() -> None:
    seats = running(3)
    seats.ended(0, -9, 10)
    assert seats.to_tell() == []
    seats.stop(10)
    assert seats.due(99) == [] and seats.to_tell() == [1, 2] and seats.to_tell() == []
    assert seats.next_deadline() == math.inf and seats.to_kill(1e9) == [], "there is no limit"
    assert seats.ended(1, 0, 11) is None and not seats.finished
    assert seats.ended(2, -signal.SIGTERM, 11) is None and seats.finished
    assert not seats.failed


@pytest.mark.parametrize("code", [1, 70, -signal.SIGKILL])
def test_one_that_does_not_stop_as_it_should_is_a_failure(code: int) -> None:
    seats = running(2)
    seats.stop(1)
    seats.ended(0, code, 2)
    seats.ended(1, 0, 2)
    assert seats.finished and seats.failed


def test_those_that_do_not_end_in_time_are_killed_once() -> None:
    seats = running(2, patience=5.0)
    seats.stop(1)
    seats.stop(4)
    assert seats.next_deadline() == 6 and seats.to_kill(5.9) == []
    seats.ended(0, 0, 5)
    assert seats.to_kill(6) == [1] and seats.to_kill(7) == []
    assert seats.next_deadline() == math.inf, "its end is what wakes the supervisor now"
    seats.ended(1, -signal.SIGKILL, 7)
    assert seats.finished and seats.failed


@pytest.mark.parametrize("seed", range(100))
def test_whatever_happens_each_seat_has_one_process_and_a_stop_ends_all(seed: int) -> None:
    rng = random.Random(seed)
    seats = Seats(3, patience=2.0)
    runs: set[int] = set()
    now = 0.0
    for step in range(200):
        now += rng.choice((0.0, 0.05, 3.0))
        if step == 150:
            seats.stop(now)
        due = seats.due(now)
        assert not runs & set(due)
        for at in due:
            if rng.random() < 0.3:
                seats.not_started(at, now)
            else:
                seats.started(at, now)
                runs.add(at)
        for at in sorted(runs):
            if rng.random() < 0.2:
                runs.remove(at)
                wait = seats.ended(at, rng.choice((0, 1)), now)
                assert (wait is None) == (step >= 150) and (wait is None or wait <= 10)
        if step < 150:
            assert len(runs) == 3 or seats.next_deadline() <= now + 10, "a seat is empty for ever"
        for at in seats.to_kill(now):
            runs.remove(at)
            seats.ended(at, -9, now)
    assert not runs and seats.finished
