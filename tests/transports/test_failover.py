"""Which of several servers gets a call."""

from __future__ import annotations

import pytest

from zmq_offload.errors import DeadlineExceeded, InvalidArgument, OffloadError, ProtocolError, Unavailable
from zmq_offload.transports.failover import CONNECT, LATE, SOON, Failover, Turn, leaves

NOBODY: frozenset[int] = frozenset()


def turn(failover: Failover, now: float, tried: frozenset[int] = NOBODY, until: float | None = None) -> Turn:
    given = failover.turn(tried, now + 10 if until is None else until, now)
    assert given is not None
    return given


@pytest.mark.parametrize(
    ("error", "next_one"),
    [
        (Unavailable("x"), True),
        (DeadlineExceeded("x"), True),
        (ProtocolError("x"), True),
        (InvalidArgument("x"), False),
    ],
)
def test_only_a_server_that_cannot_answer_is_left(error: OffloadError, next_one: bool) -> None:
    assert leaves(error) is next_one


def test_the_time_is_shared_and_the_last_server_has_the_rest() -> None:
    failover = Failover(2)
    first = turn(failover, 0)
    assert first == Turn(0, 5, CONNECT, False)
    failover.failed(first, 3)
    second = turn(failover, 3, frozenset({0}), 10)
    assert second == Turn(1, 10, 10, False)
    failover.answered(second)
    assert failover.turn(frozenset({0, 1}), 10, 4) is None


def test_a_server_that_failed_is_tried_again_by_one_call_after_its_pause() -> None:
    failover = Failover(2)
    together = turn(failover, 0), turn(failover, 0)
    for one in together:  # they count once
        failover.failed(one, 0)
    assert turn(failover, SOON / 2).server == 1
    again = turn(failover, SOON)
    assert (again.server, again.retrial) == (0, True)
    assert turn(failover, SOON).server == 1, "one call finds out"
    failover.stopped(again)  # without finding out
    again = turn(failover, SOON)
    assert again.server == 0
    failover.failed(again, SOON)
    assert turn(failover, SOON + 1.5 * SOON).server == 1, "the pause grows"
    again = turn(failover, 3 * SOON)
    failover.answered(again)
    assert turn(failover, 3 * SOON) == Turn(0, 3 * SOON + 5, 3 * SOON + CONNECT, False)


def test_a_call_that_is_stopped_at_a_server_that_works_says_nothing() -> None:
    failover = Failover(1)
    failover.stopped(turn(failover, 0))
    assert turn(failover, 0).server == 0


def test_without_a_server_that_works_the_one_whose_pause_ends_first_is_tried() -> None:
    failover = Failover(2)
    failover.failed(turn(failover, 0), 0)
    failover.failed(turn(failover, 0.5, frozenset({0})), 0.5)
    one = turn(failover, 0.6)
    assert one.server == 0
    failover.stopped(one)
    now = 0.6
    for _ in range(20):
        now += LATE
        one = turn(failover, now, frozenset({1}))
        failover.failed(one, now)
    assert turn(failover, now + LATE, frozenset({1})).retrial, "the pause has an end"
