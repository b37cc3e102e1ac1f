"""Tuning: trials are divided among functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.compile.tuning.plan import LEAST_TRIALS, seconds_left, share_out


@given(st.integers(1, 5000), st.dictionaries(st.text("abc", min_size=1), st.floats(0.01, 1e6), min_size=1, max_size=30))
def test_all_trials_are_shared_out_and_no_function_gets_too_few_to_matter(trials: int, costs: dict[str, float]) -> None:
    shares = share_out(trials, costs)
    assert sum(shares.values()) == trials
    assert len(shares) == 1 or min(shares.values()) >= LEAST_TRIALS
    by_cost = sorted(shares, key=lambda key: -costs[key])
    assert [shares[k] for k in by_cost] == sorted(shares.values(), reverse=True)


def test_nothing_to_tune_gets_no_trials() -> None:
    assert share_out(100, {}) == {}


def test_the_time_left_follows_the_pace() -> None:
    assert seconds_left(10.0, 20, 40) == 20.0
    assert seconds_left(10.0, 0, 40) is None
