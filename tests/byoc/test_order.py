"""Topological order with priorities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.byoc.order import topological_order


@st.composite
def graphs(draw: st.DrawFn) -> list[set[int]]:
    count = draw(st.integers(0, 12))
    names = draw(st.permutations(range(count)))
    needs: list[set[int]] = [set() for _ in range(count)]
    for at, step in enumerate(names):
        needs[step] = set(draw(st.lists(st.sampled_from(names[:at]), max_size=3))) if at else set()
    return needs


@given(needs=graphs(), data=st.data())
def test_each_step_comes_once_after_its_needs_and_before_ready_steps_of_higher_priority(
    needs: list[set[int]], data: st.DataObject
) -> None:
    priorities = data.draw(st.lists(st.integers(0, 3), min_size=len(needs), max_size=len(needs)))
    order = topological_order(needs, priorities)
    assert sorted(order) == list(range(len(needs)))
    done: set[int] = set()
    for step in order:
        assert needs[step] <= done
        ready = [i for i, needed in enumerate(needs) if i not in done and needed <= done]
        assert (priorities[step], step) == min((priorities[i], i) for i in ready)
        done.add(step)


def test_steps_that_need_each_other_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"need each other in a cycle: \[1, 2\]"):
        topological_order([set(), {2}, {1, 0}], [0, 0, 0])
