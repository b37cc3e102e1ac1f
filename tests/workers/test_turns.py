"""When the connections are taken over, without threads."""

from __future__ import annotations

from workers.turns import LONG, Runs, Turn


def test_a_run_that_is_seen_twice_is_taken_over() -> None:
    runs = Runs()
    runs.count += 1
    assert runs.look(long=False) is Turn.LOOK
    assert runs.look(long=False) is Turn.TAKE


def test_short_runs_are_never_taken_over_however_many_there_are() -> None:
    runs = Runs()
    for _ in range(5):
        runs.count += 3
        assert runs.look(long=False) is Turn.LOOK


def test_a_run_that_is_expected_to_be_long_is_taken_over_at_once() -> None:
    runs = Runs()
    runs.count += 1
    assert runs.look(long=True) is Turn.TAKE
    runs.count += 1
    assert runs.look(long=True) is Turn.LOOK


def test_who_watches_rests_when_nothing_has_run_since_the_last_look() -> None:
    runs = Runs()
    runs.count += 2
    assert runs.look(long=False) is Turn.LOOK
    assert runs.look(long=False) is Turn.REST
    runs.count += 1
    assert runs.look(long=False) is Turn.LOOK


def test_a_run_is_expected_to_last_as_long_as_the_last_of_its_kind() -> None:
    runs = Runs()
    assert runs.expected("a") >= LONG, "nobody knows"
    runs.lasted("a", 0.25)
    runs.lasted("b", 0.5)
    runs.lasted("a", 0.001)
    assert runs.expected("a") == 0.001 and runs.expected("b") == 0.5
    runs.forget()
    assert runs.expected("a") >= LONG
