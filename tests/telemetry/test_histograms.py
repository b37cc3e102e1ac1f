from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.telemetry.histograms import BATCHES, LATENCIES, Buckets, Histogram

VALUES = st.lists(st.floats(0, 20))


def filled(values: list[float], bounds: tuple[float, ...] = LATENCIES) -> Buckets:
    histogram = Histogram(bounds)
    for value in values:
        histogram.add(value)
    return histogram.buckets()


def test_a_bound_belongs_to_the_bucket_below_it() -> None:
    assert filled([1, 2, 3, 4, 257, 1000], BATCHES).counts == (1, 1, 2, 0, 0, 0, 0, 0, 0, 2)
    assert filled([1, 2, 3, 4, 257, 1000], BATCHES).sum == 1267


@given(VALUES)
def test_cumulative_counts_are_those_of_the_values(values: list[float]) -> None:
    buckets = filled(values)
    assert buckets.cumulative() == [sum(value <= bound for value in values) for bound in (*LATENCIES, math.inf)]
    assert buckets.count == len(values)
    assert buckets.sum == pytest.approx(sum(values))
    assert buckets.mean == pytest.approx(sum(values) / max(1, len(values)))


@given(VALUES, VALUES)
def test_since_is_what_was_added(earlier: list[float], later: list[float]) -> None:
    both = filled(earlier + later)
    added = both.since(filled(earlier))
    assert added.counts == filled(later).counts
    assert added.sum == pytest.approx(sum(later), abs=1e-9)
    assert filled(earlier).plus(filled(later)).counts == both.counts


def test_after_a_restart_all_values_are_new() -> None:
    assert filled([0.3]).since(filled([0.3, 0.3])) == filled([0.3])


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0, 1))
def test_a_quantile_is_in_the_bucket_of_the_value_that_it_stands_for(values: list[float], q: float) -> None:
    exact = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    high = next(bound for bound in LATENCIES if exact <= bound)
    low = max((bound for bound in LATENCIES if bound < exact), default=0.0)
    assert low <= filled(values).quantile(q) <= high


def test_quantiles_interpolate() -> None:
    assert filled([]).quantile(0.5) == 0
    assert filled([1.5] * 10, (1, 2, 3)).quantile(0.5) == 1.5
    assert filled([0.5] * 50 + [1.5] * 50, (1, 2, 3)).quantile(0.75) == 1.5
    assert filled([99.0], (1, 2, 3)).quantile(0.5) == 3


def test_a_body_comes_back() -> None:
    buckets = filled([0.1, 3, 70])
    assert Buckets.of_body(buckets.body()) == buckets
