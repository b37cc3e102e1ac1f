"""Which broker a client tries first, and which next."""

from __future__ import annotations

from collections import Counter

from zmq_offload.client.spread import in_order

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
