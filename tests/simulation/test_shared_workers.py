"""Workers that several brokers share: requests wait little longer than with one broker."""

from __future__ import annotations

import pytest

from tests.simulation.shared_workers import Fabric, Waiting


def waiting(brokers: int, *, tells: bool) -> Waiting:
    return Fabric(brokers, 8, 0.7, tells=tells, varied=True, requests=3000).run()


@pytest.mark.parametrize("brokers", [2, 4])
def test_brokers_that_are_told_of_each_others_requests_give_them_to_the_right_workers(brokers: int) -> None:
    one, told, not_told = waiting(1, tells=True), waiting(brokers, tells=True), waiting(brokers, tells=False)
    assert one.told == 0, "there is nobody to tell"
    assert told.mean < one.mean + 0.4 * (not_told.mean - one.mean)
    assert told.told <= 2 * (brokers - 1), "a request is told of when it begins and when nothing is left"
