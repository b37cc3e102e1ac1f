"""Splits whose models nobody serves."""

from __future__ import annotations

from zmq_offload.device.absent import FIRST, MOST, Absent


def test_what_is_wanted_is_used_while_it_is_there() -> None:
    absent = Absent(3)
    assert [absent.instead(split, set(), 0.0) for split in range(3)] == [0, 1, 2]
    assert not absent.served(1)


def test_the_nearest_that_may_be_there_stands_in_until_the_pause_is_over() -> None:
    absent = Absent(4)
    assert absent.refused(1, 10.0)
    assert absent.instead(1, {1}, 10.0) == absent.instead(1, set(), 10.5) == 0
    assert absent.instead(1, {0, 1}, 10.0) == 2
    assert absent.refused(0, 10.0) and absent.instead(0, set(), 10.1) == 2
    assert absent.instead(1, set(), 10.0 + FIRST) == 1


def test_an_item_that_was_refused_everywhere_has_none_left() -> None:
    absent = Absent(2)
    absent.refused(0, 0.0)
    assert absent.instead(0, {0}, 0.0) == 1
    absent.refused(1, 0.0)
    assert absent.instead(1, {0, 1}, 0.0) is None
    assert absent.instead(1, set(), 0.1) == 1  # the next item asks once
    assert absent.instead(1, {1}, 0.1) is None


def test_pauses_grow_and_start_over_when_the_model_is_served_again() -> None:
    absent = Absent(1)
    now, pauses = 0.0, []
    for _ in range(8):
        new = absent.refused(0, now)
        pauses.append(absent.splits[0][1])
        assert new is (now == 0.0)
        now = absent.splits[0][0]
    assert pauses[:3] == [FIRST, 2 * FIRST, 4 * FIRST] and pauses[-1] == MOST
    assert absent.served(0) and not absent.splits
    assert absent.refused(0, now) and absent.splits[0] == (now + FIRST, FIRST)
