"""Whether a canary is worse than the other versions: the trial, with the time passed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.canary import PARTS, Trial
from broker.state import CanarySettings

CANARY, STABLE = 4, 3


def trial(share: float = 0.1, **settings: float) -> Trial:
    return Trial(CanarySettings(CANARY, share, **settings))  # type: ignore[arg-type]


def run(tried: Trial, version: int, count: int, *, failed: int = 0, compute: float = 0.01, now: float = 1000.0) -> str:
    """End `count` requests of a version over a second, of which `failed` fail first."""
    why = ""
    for number in range(count):
        status = "INTERNAL" if number < failed else "ok"
        why = tried.ended(version, status, 0.0 if number < failed else compute, now + number / count) or why
    return why


def test_a_canary_that_is_as_good_stays() -> None:
    tried = trial()
    for second in range(100):
        run(tried, STABLE, 50, failed=1, now=1000.0 + second)
        assert run(tried, CANARY, 10, failed=second % 5 == 0, now=1000.0 + second) == ""
    assert tried.returned == ""


def test_a_canary_that_fails_more_often_is_returned_with_the_figures() -> None:
    tried = trial()
    run(tried, STABLE, 900, failed=9)
    assert run(tried, CANARY, 99, failed=99, now=1001.0) == "", "too few requests to know"
    why = run(tried, CANARY, 1, now=1003.0)
    assert why == (
        "99 of its 100 requests failed (99.0%), and 1.0% of the others; at most 2.0% more is allowed (error_margin)"
    )
    assert tried.returned == why
    assert tried.draws(b"anybody") is False
    assert run(tried, CANARY, 500, failed=500, now=1004.0) == "", "it ends once"


@pytest.mark.parametrize(("failed", "returned"), [(2, False), (4, True)])
def test_the_margin_is_above_the_rate_of_the_others(failed: int, returned: bool) -> None:
    tried = trial(error_margin=0.01)
    run(tried, STABLE, 1000, failed=10)
    run(tried, CANARY, 150, failed=failed)
    assert bool(run(tried, CANARY, 1, now=1005.0)) is returned


def test_without_requests_of_the_others_errors_count_and_times_do_not() -> None:
    slow, broken = trial(share=1.0), trial(share=1.0)
    run(slow, CANARY, 500, compute=9.0)
    assert run(slow, CANARY, 1, now=1005.0) == ""
    run(broken, CANARY, 500, failed=20)
    assert run(broken, CANARY, 1, now=1005.0).startswith("20 of its 501 requests failed (4.0%), and 0.0%")


@pytest.mark.parametrize(("compute", "returned"), [(0.014, False), (0.017, True)])
def test_a_canary_that_takes_longer_is_returned(compute: float, returned: bool) -> None:
    tried = trial()
    run(tried, STABLE, 200, compute=0.01)
    run(tried, CANARY, 150, compute=compute)
    why = run(tried, CANARY, 1, compute=compute, now=1005.0)
    assert bool(why) is returned
    assert not returned or why.endswith("at most 1.5 times that is allowed (latency_ratio)")


def test_others_of_which_none_succeeded_say_nothing_of_times() -> None:
    tried = trial()
    run(tried, STABLE, 200, failed=200)
    run(tried, CANARY, 200)
    assert run(tried, CANARY, 1, now=1005.0) == ""


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "CANCELLED", "NOT_FOUND", "PERMISSION_DENIED"])
def test_errors_of_the_caller_do_not_count(status: str) -> None:
    tried = trial()
    for number in range(300):
        tried.ended(CANARY, status, 0.0, 1000.0 + number / 100)
    assert tried.counts() == {"requests": 0, "failed": 0, "others": 0, "others_failed": 0}


def test_what_is_older_than_the_window_does_not_count() -> None:
    tried = trial(window=30.0)
    run(tried, CANARY, 90, failed=90)
    run(tried, CANARY, 90, now=1032.0)
    assert tried.counts()["requests"] == 90
    assert run(tried, CANARY, 20, now=1034.0) == ""
    assert len(tried._parts) <= PARTS + 1


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, unique=True), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_callers(callers: list[bytes], one: float, other: float) -> None:
    less, more = trial(share=min(one, other)), trial(share=max(one, other))
    drawn = {caller for caller in callers if less.draws(caller)}
    assert drawn == {caller for caller in callers if less.draws(caller)}, "a caller stays with its version"
    assert drawn <= {caller for caller in callers if more.draws(caller)}


def test_nobody_and_everybody_can_be_drawn_and_a_share_is_kept() -> None:
    callers = [number.to_bytes(16, "big") for number in range(4000)]
    assert not any(trial(share=0.0).draws(caller) for caller in callers)
    assert all(trial(share=1.0).draws(caller) for caller in callers)
    assert 0.08 < sum(trial(share=0.1).draws(caller) for caller in callers) / 4000 < 0.12
