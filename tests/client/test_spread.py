"""Which broker a client tries first, and which next."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from zmq_offload.client.spread import Return, in_order, is_back, served
from zmq_offload.errors import DeadlineExceeded

BROKERS = [f"tcp://edge-{number}:5555" for number in range(4)]
TOKENS = [number.to_bytes(16, "big") for number in range(4000)]


def test_a_client_keeps_its_order_and_tries_each_broker_once() -> None:
    order = in_order(BROKERS, TOKENS[7], spread=True)
    assert order == in_order(BROKERS, TOKENS[7], spread=True)
    assert sorted(order) == BROKERS


def test_clients_spread_over_all_brokers() -> None:
    first = Counter(in_order(BROKERS, token, spread=True)[0] for token in TOKENS)
    assert all(900 < first[broker] < 1100 for broker in BROKERS), first


def test_the_clients_of_a_broker_that_ends_spread_over_all_others() -> None:
    orders = [in_order(BROKERS, token, spread=True) for token in TOKENS]
    second = Counter(order[1] for order in orders if order[0] == BROKERS[0])
    assert set(second) == set(BROKERS[1:])
    assert max(second.values()) < 1.3 * min(second.values()), second


def test_a_client_stays_with_its_broker_when_others_are_listed() -> None:
    before = [in_order(BROKERS[:3], token, spread=True)[0] for token in TOKENS]
    after = [in_order(BROKERS, token, spread=True)[0] for token in TOKENS]
    assert all(new in (old, BROKERS[3]) for old, new in zip(before, after, strict=True))


def test_a_given_order_is_kept() -> None:
    assert in_order(BROKERS[::-1], TOKENS[3], spread=False) == BROKERS[::-1]


HOME, SECOND, THIRD = "tcp://a:1", "tcp://b:1", "tcp://c:1"


def returning(wait: float = 30.0, chance: float = 0.5) -> Return:
    return Return([HOME, SECOND, THIRD], wait, lambda: chance)


def looks(one: Return, at: str, start: int, end: int) -> list[tuple[int, str]]:
    """When it looks, and where, if it is asked each second."""
    return [(now, found) for now in range(start, end) if (found := one.look(at, now)) is not None]


def test_a_client_at_its_first_broker_never_looks() -> None:
    assert looks(returning(), HOME, 0, 10_000) == []


def test_a_client_that_left_looks_after_a_while_and_again() -> None:
    assert looks(returning(), SECOND, 100, 250) == [(145, HOME), (190, HOME), (235, HOME)]


def test_a_client_at_its_third_broker_looks_at_both_others_in_turn() -> None:
    assert looks(returning(chance=0.0), THIRD, 0, 130) == [(30, HOME), (60, SECOND), (90, HOME), (120, SECOND)]


def test_a_client_that_is_back_at_its_second_broker_goes_on_to_look_for_the_first() -> None:
    one = returning(chance=0.0)
    assert looks(one, THIRD, 0, 61)[-1] == (60, SECOND)
    one.came(SECOND, 61)
    assert looks(one, SECOND, 61, 100) == [(91, HOME)]
    one.came(HOME, 100)
    assert looks(one, HOME, 100, 1000) == []


def test_a_client_that_has_to_leave_again_soon_waits_longer_each_time_until_it_stays() -> None:
    one = returning(chance=0.0)
    now, waits = 0, []
    for _ in range(7):
        (found, _), *_ = looks(one, SECOND, now, now + 1000)
        waits.append(found - now)
        one.came(HOME, found)
        assert one.look(HOME, found) is None
        now = found + 10
    assert waits == [30, 60, 120, 240, 480, 480, 480]
    now += 16 * 30 * 10
    assert looks(one, SECOND, now, now + 1000)[0] == (now + 30, HOME)


def test_chance_spreads_the_looks_over_twice_the_wait() -> None:
    assert looks(returning(chance=0.999), SECOND, 0, 61) == [(60, HOME)]


def test_a_client_that_stays_where_it_is_never_looks() -> None:
    assert looks(returning(wait=math.inf), SECOND, 0, 10_000) == []


def test_a_client_goes_only_to_a_broker_that_serves_all_that_its_own_serves() -> None:
    some = served([{"name": "a", "version": 1}])
    more = served([{"name": "a", "version": 1}, {"name": "b", "version": 2}])
    nothing = served([])
    assert is_back(some, some) and is_back(more, some) and is_back(some, nothing)
    assert not (is_back(some, more) or is_back(nothing, nothing))


@pytest.mark.parametrize("listing", [None, {}, "models", [None], DeadlineExceeded("late")])
def test_a_broker_that_lists_no_models_serves_none(listing: object) -> None:
    assert served(listing) == set()
