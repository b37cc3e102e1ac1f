"""Clients of a broker that ends go to the others, and back when it is there again, one after the other."""

from __future__ import annotations

import pytest

from tests.simulation.homecoming import BROKERS, spread

DOWN, BACK = 10.0, 60.0


@pytest.mark.parametrize("seed", range(6))
def test_after_an_outage_all_clients_are_where_they_were(seed: int) -> None:
    moments = spread(40, (DOWN, BACK), BACK + 65, seed)
    before = moments[0].clients
    assert all(5 <= before[broker] <= 22 for broker in BROKERS), "they spread by chance"
    away = moments[round(BACK) - 1].clients
    assert away[BROKERS[2]] == 0 and min(away[broker] for broker in BROKERS[:2]) > min(before.values())
    assert moments[-1].clients == before, "within the longest wait and a little"
    back = [moment.moved for moment in moments[round(BACK) :]]
    assert sum(back) == before[BROKERS[2]] and sum(moment.moved for moment in moments) == sum(back)
    assert max(back) <= 5, "they do not return all at once"
