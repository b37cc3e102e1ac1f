"""When a worker would be done with a request, and how the broker measures what workers take."""

from __future__ import annotations

import pytest

from broker.expected import Arrivals, is_mixed, measured, pick
from broker.lifecycle import WorkerState
from broker.pace import Pace
from broker.state import PendingRequest, Wanted, Worker
from zmq_offload.protocol.messages import Key

M = ("m", 1)


def worker(name: str, each: float | None = None, *, slots: int = 2, held: int = 0, since: float = 0.0) -> Worker:
    """A worker that takes `each` seconds, and holds requests; it began the first one `since` seconds before 100."""
    found = Worker(name.encode(), name, slots, 0.0)
    if each is not None:
        found.paces[M] = Pace(each, each, 100.0, samples=32)
    for number in range(held):
        request = PendingRequest(Key(b"s", number), b"c", b"c", Wanted("m"), 0, 1e9, 0.0, [], 0, 0)
        request.dispatched_at = 100.0 - since
        found.held[b"s", number, 1] = request
    return found


def picked(
    workers: list[Worker], queued: int = 1, interval: float = 0.0, longest: int = 0, waited: float = 0.0
) -> tuple[str, float]:
    runs = {w.peer: 1 for w in workers}
    found, again = pick(workers, "m", runs, longest, queued, waited, interval, 100.0)
    return found.name if found else "", again


# --- the choice ---------------------------------------------------------------------------------------------


def test_the_worker_that_is_done_first_gets_the_request() -> None:
    quick, slow = worker("quick", 0.01), worker("slow", 0.1)
    assert picked([slow, quick]) == ("quick", 0.0)
    assert picked([slow, worker("quick", 0.01, held=1)]) == ("quick", 0.0)  # 20 ms
    assert picked([slow, worker("quick", 0.06, held=1)]) == ("slow", 0.0)  # 120 ms


def test_a_request_waits_for_a_quick_worker_if_that_is_sooner() -> None:
    full = worker("quick", 0.01, held=2)
    assert picked([worker("slow", 0.1), full]) == ("", pytest.approx(0.1))  # 30 ms; looked at again after 100
    assert picked([worker("slow", 0.025), full]) == ("slow", 0.0)


def test_a_request_waits_for_a_quick_worker_no_longer_than_twice_what_the_slow_one_takes() -> None:
    workers = [worker("slow", 0.1), worker("quick", 0.01, held=2)]
    assert picked(workers, waited=0.15) == ("", pytest.approx(0.05))
    assert picked(workers, waited=0.201) == ("slow", 0.0)


def test_a_long_queue_goes_to_slow_workers_too() -> None:
    workers = [worker("slow", 0.1), worker("quick", 0.01, held=2)]
    assert [picked(workers, queued)[0] for queued in (1, 7, 9)] == ["", "", "slow"]


def test_the_queue_may_be_shorter_the_more_of_the_quick_workers_time_is_taken() -> None:
    workers = [worker("slow", 0.1), worker("quick", 0.01, held=2)]
    assert picked(workers, 5, interval=0.1)[0] == "", "a tenth of its time is taken"
    assert picked(workers, 5, interval=0.0125)[0] == "slow", "four fifths are taken"
    assert picked(workers, 1, interval=0.0125)[0] == ""
    assert picked(workers, 2, interval=0.001)[0] == "slow", "more comes than it can do"


def test_a_worker_that_is_not_measured_is_tried() -> None:
    assert picked([worker("slow", 0.1, held=1), worker("new")])[0] == "new"


def test_a_worker_that_was_not_measured_for_long_is_tried_again() -> None:
    slow, quick = worker("slow", 0.1), worker("quick", 0.01, held=1)
    slow.paces[M].at = -500.0
    assert picked([slow, quick])[0] == "slow"
    assert picked([slow, quick], interval=60)[0] == "quick", "where few requests come, it takes longer"


def test_nothing_waits_for_a_worker_that_hangs() -> None:
    slow = worker("slow", 0.1)
    assert picked([slow, worker("quick", 0.01, held=2, since=0.02)])[0] == ""
    assert picked([slow, worker("quick", 0.01, held=2, since=0.2)])[0] == "slow"


def test_what_a_run_has_taken_says_less_where_runs_vary() -> None:
    quick = worker("quick", 0.04, held=2, since=0.03)
    assert picked([worker("slow", 0.11), quick])[0] == "", "10 ms are left, then two runs"
    quick.paces[M].variance = 0.04**2
    assert picked([worker("slow", 0.11), quick])[0] == "slow", "40 ms are left"


def test_only_workers_that_may_have_it_count() -> None:
    quick, slow = worker("quick", 0.01), worker("slow", 0.1)
    quick.max_frame_bytes = 10
    assert picked([quick, slow], longest=11)[0] == "slow"
    quick.max_frame_bytes, quick.state = 100, WorkerState.QUIET
    assert picked([quick, slow], longest=11)[0] == "slow"
    assert picked([worker("full", 0.1, held=2)]) == ("", 0.0), "only an answer helps"


def test_what_a_worker_does_for_other_brokers_counts() -> None:
    quick = worker("quick", 0.03)
    quick.elsewhere = 5
    assert picked([worker("slow", 0.1), quick])[0] == "slow"


def test_when_a_worker_began_what_it_does_for_another_broker_only_is_not_known() -> None:
    quick = worker("quick", 0.03)
    quick.elsewhere, quick.answered_at = 1, 10.0
    assert picked([worker("slow", 0.1), quick])[0] == "quick", "it does not hang since its last answer, 90 s ago"


def test_of_workers_that_are_done_at_the_same_time_the_one_with_fewer_bytes_gets_it() -> None:
    one, two = worker("one", 0.1), worker("two", 0.1)
    one.nbytes = 1
    assert picked([one, two])[0] == "two"


# --- measuring ----------------------------------------------------------------------------------------------


def test_a_run_begins_when_it_is_dispatched_or_when_the_one_before_is_answered() -> None:
    w = worker("w")
    assert measured(w, M, 10.0, 0.0, 1, 10.2), "it is new"
    assert w.paces[M].run == pytest.approx(0.2)
    measured(w, M, 10.1, 5.0, 1, 10.3)
    assert w.paces[M].run == pytest.approx(0.15), "0.2 and 0.1, whatever the worker says"


def test_of_a_shared_worker_the_time_that_it_says_counts_if_it_is_shorter() -> None:
    w = worker("w")
    w.elsewhere = 1
    measured(w, M, 10.0, 0.05, 1, 11.0)
    assert w.paces[M].run == pytest.approx(0.05)


def test_the_requests_of_a_batch_share_its_time() -> None:
    w = worker("w")
    measured(w, M, 10.0, 0.0, 4, 10.2)
    assert (w.paces[M].run, w.paces[M].each) == (pytest.approx(0.2), pytest.approx(0.05))


@pytest.mark.parametrize("step", [0.0, -5.0])
def test_a_clock_that_steps_makes_no_time_of_zero(step: float) -> None:
    w = worker("w")
    measured(w, M, 10.0, 0.0, 1, 10.0 + step)
    measured(w, M, 10.0, 0.0, 1, 10.0 + step)
    assert w.paces[M].run > 0


def test_one_long_run_in_a_thousand_changes_no_rank() -> None:
    pace = Pace(0.1, 0.1, 0.0, samples=100)
    pace.add(10.0, 1, 1.0)
    assert pace.each < 0.15


def test_a_worker_that_is_slower_from_now_on_is_known_after_five_runs() -> None:
    pace = Pace(0.1, 0.1, 0.0, samples=100, weighed=0.1)
    assert not pace.add(0.5, 1, 1.0)
    assert [pace.add(0.5, 1, n) for n in range(4)][-1]
    assert pace.each == pytest.approx(0.5)


def test_a_worker_that_is_quicker_from_now_on_is_known_after_eight_runs() -> None:
    pace = Pace(0.1, 0.1, 0.0, samples=100)
    for n in range(8):
        pace.add(0.01, 1, n)
    assert pace.each == pytest.approx(0.01)


def test_pools_are_looked_at_again_when_an_average_has_changed_or_more_is_known() -> None:
    pace = Pace(0.1, 0.1, 0.0, weighed=0.1)
    assert [n for n in range(2, 40) if pace.add(0.1, 1, n)] == [4, 8, 16, 32]
    assert any(pace.add(0.2, 1, n) for n in range(20))


def test_a_pool_is_mixed_if_times_differ_by_more_than_they_may_be_wrong() -> None:
    quick, slow = worker("quick", 0.01), worker("slow", 0.021)
    runs = {b"quick": 1, b"slow": 1, b"new": 1}
    assert is_mixed([quick, slow, worker("new")], "m", runs, False)
    assert (quick.paces[M].weighed, slow.paces[M].weighed) == (0.01, 0.021)
    slow.paces[M].variance = 0.021**2
    assert not is_mixed([quick, slow], "m", runs, False), "it may be wrong by a sixth"
    assert is_mixed([quick, slow], "m", runs, True), "it was already"
    slow.paces[M].each = 0.014
    assert not is_mixed([quick, slow], "m", runs, True)
    slow.paces[M].samples, slow.paces[M].each = 3, 1.0
    assert not is_mixed([quick, slow], "m", runs, False), "too little is known"
    assert not is_mixed([worker("new")], "m", runs, False)


def test_the_interval_between_requests_is_an_average() -> None:
    arrivals = Arrivals(0.0)
    for n in range(1, 100):
        arrivals.came(n * 0.5)
    assert arrivals.interval == pytest.approx(0.5)
    arrivals.came(100.0)
    assert 0.5 < arrivals.interval < 1.0
    arrivals.came(50_000.0)
    assert arrivals.interval < 1.2, "a night without requests"
