"""When a worker process is started again."""

from __future__ import annotations

from zmq_offload.common.backoff import Backoff


def test_delays_grow_for_a_process_that_keeps_ending_at_once() -> None:
    backoff = Backoff()
    assert [backoff.ended(0) for _ in range(9)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10]


def test_a_process_that_served_is_restarted_at_once() -> None:
    backoff = Backoff()
    assert [backoff.ended(2) for _ in range(5)] == [0] * 5
    for _ in range(6):
        backoff.ended(0)
    assert backoff.ended(20) == 0
