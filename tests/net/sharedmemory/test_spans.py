"""Free spans, against a list of units."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.net.sharedmemory.spans import Spans

_SIZE = 24


@given(st.lists(st.one_of(st.integers(1, 10), st.integers(-5, -1))))
def test_spans_are_as_a_list_of_units_says(steps: list[int]) -> None:
    spans, units = Spans(_SIZE), [False] * _SIZE
    taken: list[tuple[int, int]] = []
    for step in steps:
        if step > 0:
            fits = (at for at in range(_SIZE - step + 1) if not any(units[at : at + step]))
            start = spans.take(step)
            assert start == next(fits, None)
            if start is not None:
                units[start : start + step] = [True] * step
                taken.append((start, step))
        elif taken:
            start, length = taken.pop(step % len(taken))
            spans.free(start, length)
            units[start : start + length] = [False] * length
        free = spans.all()
        assert [unit for start, length in free for unit in range(start, start + length)] == [
            unit for unit in range(_SIZE) if not units[unit]
        ]
        assert all(a + length < b for (a, length), (b, _) in pairwise(free))
    for start, length in taken:
        spans.free(start, length)
    assert spans.all() == [(0, _SIZE)]
