"""When a worker process is started again."""

from __future__ import annotations

from workers.supervisor import Backoff


def test_one_that_ends_at_once_again_and_again_is_started_later_and_later() -> None:
    backoff = Backoff()
    assert [backoff.ended(0) for _ in range(9)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10]


def test_one_that_served_is_back_at_once() -> None:
    backoff = Backoff()
    assert [backoff.ended(2) for _ in range(5)] == [0] * 5
    for _ in range(6):
        backoff.ended(0)
    assert backoff.ended(20) == 0
