"""Charts of characters, and rows for a low terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.dashboard.history import History
from zmq_offload.dashboard.series import Point
from zmq_offload.dashboard.terminal import bar, by_step, share, sorted_view, sparkline


def test_the_highest_value_of_a_chart_is_full() -> None:
    assert sparkline([0, 1, 4, None, 8], 10) == "▁▂▅ █"
    assert sparkline([1, 2, 3], 2) == "▆█" and sparkline([1.0], 0) == "" and sparkline([], 5) == ""
    assert sparkline([0, 0, None], 5) == "▁▁ "


def test_steps_without_points_are_gaps() -> None:
    five, seven = (Point(number, 1.0, 0.0, None, None, None, 0) for number in (5, 7))
    assert by_step([five, seven], 7.9, 4) == [None, five, None, seven]


def test_rows_are_shared_in_turn() -> None:
    assert share(10, [2, 20, 3]) == [2, 5, 3]
    assert share(1, [2, 2]) == [1, 0] and share(0, [1]) == [0] and share(-3, [1]) == [0] and share(9, [1, 1]) == [1, 1]


@given(st.integers(0, 60), st.lists(st.integers(0, 30), max_size=5))
def test_no_row_is_given_twice_or_wasted(room: int, wanted: list[int]) -> None:
    given_ = share(room, wanted)
    assert sum(given_) == min(room, sum(wanted)) and all(g <= w for g, w in zip(given_, wanted, strict=True))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=4), st.integers(1, 40))
def test_a_bar_has_its_width(parts: list[float], width: int) -> None:
    lengths = bar(parts, width)
    assert min(lengths) >= 0 and sum(lengths) == (width if sum(parts) > 0 else 0)


def test_the_busiest_come_first_if_wanted() -> None:
    model = {"name": "m", "version": 1, "workers": 1, "latest": True}
    worker = {"name": "a", "state": "ready", "models": [], "slots": 1, "outstanding": 0, "served": 0, "failed": 0,
              "silent": 0.0}  # fmt: skip
    history = History()
    history.add(
        {
            "uptime": 1.0, "stopping": False, "dropped": {}, "lost_workers": 0,
            "requests": {"served": 0, "failed": {}, "refused": {}, "retried": 0, "queued": 0, "outstanding": 0},
            "models": [model, model | {"name": "n", "statistics": {"queued": 2}}],
            "workers": [worker, worker | {"name": "b", "outstanding": 1}],
        },
        1.0,
    )  # fmt: skip
    view = history.view(1.0)
    assert sorted_view(view, by_load=False) is view
    busiest = sorted_view(view, by_load=True)
    assert [m.name for m in busiest.models] == ["n", "m"] and [w.name for w in busiest.workers] == ["b", "a"]
