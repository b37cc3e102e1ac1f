"""Deadlines by key."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.net.timers import Timers

KEYS = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.integers(0, 50)),
        st.tuples(st.just("cancel"), KEYS, st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.integers(0, 50)),
    ),
    max_size=300,
)


@given(STEPS)
def test_timers_agree_with_a_dictionary(steps: list[tuple[str, int, int]]) -> None:
    timers: Timers[int] = Timers()
    model: dict[int, int] = {}
    for what, key, at in steps:
        if what == "set":
            timers.set(key, at)
            model[key] = at
        elif what == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            taken = timers.pop(at)
            if taken is None:
                assert all(due > at for due in model.values())
            else:
                assert model[taken] == min(model.values()) <= at
                del model[taken]
        assert timers.first <= min(model.values(), default=inf), "it may be too early, but never too late"
        assert timers.next() == min(model.values(), default=None)
        assert len(timers) == len(model)
        assert all(key in timers for key in model)


def test_cancelled_deadlines_do_not_accumulate() -> None:
    timers: Timers[int] = Timers()
    for n in range(10_000):
        timers.set(n, 1e9)
        timers.cancel(n)
    assert len(timers._heap) < 200


def test_nothing_is_due_before_the_first_deadline() -> None:
    timers: Timers[int] = Timers()
    assert timers.first > 1e9
    timers.set(1, 5.0)
    assert timers.first > 4.9
    assert timers.first == 5.0
