"""Fleets of workers of different speed, in simulated time."""

from __future__ import annotations

import pytest

from tests.simulation.mixed_fleet import FLEETS, SECONDS, Fleet, arrivals, best, without

GPU = FLEETS["1 GPU, 4 CPUs"]


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_requests_take_little_longer_than_by_the_best_assignment(load: float) -> None:
    work = arrivals(1500, load * sum(GPU) / SECONDS, "fixed")
    least = best(GPU, work)
    assert Fleet(GPU, work).run() <= 1.15 * least
    assert without(GPU, work) > 1.3 * least, "that is why"


def test_the_invariants_hold_while_requests_wait_for_quick_workers() -> None:
    Fleet(GPU, arrivals(500, 0.9 * sum(GPU) / SECONDS, "two")).run(check=True)


def test_a_worker_that_becomes_slow_gets_less_after_a_few_requests() -> None:
    """The quicker of two GPUs takes five times as long from the middle on, which the other can do alone."""
    speeds = (20.0, 10.0, 1.0)
    work = arrivals(2000, 0.25 * sum(speeds) / SECONDS, "fixed")
    middle = work[1000].at
    fleet = Fleet(speeds, work, lambda now, worker: 5.0 if worker == 0 and now > middle else 1.0)
    fleet.run()
    assert fleet.served[0] < 1250, "most of the second half went to the others"
    late = sorted(fleet.latencies[-800:])
    assert late[len(late) * 95 // 100] < 0.05, "nearly none waited behind the slow one"
