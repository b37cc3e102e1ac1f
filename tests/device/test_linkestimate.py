"""What a link takes, from the messages that it carried."""

from __future__ import annotations

import pytest

from zmq_offload.device.linkestimate import PER_BYTE, ROUND_TRIP, LinkEstimate


def carried(*messages: tuple[int, float], times: int = 30) -> LinkEstimate:
    link = LinkEstimate()
    for _ in range(times):
        for nbytes, seconds in messages:
            link.add(nbytes, seconds)
    return link


def test_messages_of_two_sizes_tell_round_trip_and_bandwidth() -> None:
    link = carried((1_000, 0.0211), (100_000, 0.12))
    assert link.predicted(50_000) == pytest.approx(0.070, rel=0.05)
    assert link.round_trip == pytest.approx(0.020, rel=0.1)
    assert link.per_byte == pytest.approx(1e-6, rel=0.05)
    assert link.deviation < 0.002


def test_messages_of_one_size_are_predicted_and_leave_the_rest_as_it_was() -> None:
    link = LinkEstimate()
    assert (link.round_trip, link.per_byte, link.samples) == (ROUND_TRIP, pytest.approx(PER_BYTE), 0)
    link = carried((10_000, 0.009))
    assert link.predicted(10_000) == pytest.approx(0.009, rel=0.05)
    assert 0 < link.round_trip < 0.009


def test_a_link_that_changes_is_followed_within_ten_messages() -> None:
    link = carried((1_000, 0.011), (100_000, 0.02))
    for _ in range(10):
        link.add(100_000, 0.2)
    assert link.predicted(100_000) == pytest.approx(0.2, rel=0.25)


def test_neither_bandwidth_nor_round_trip_is_negative() -> None:
    link = carried((1_000, 0.1), (100_000, 0.001))
    assert link.per_byte == 0 and link.round_trip > 0
    link = carried((50_000, 0.001), (100_000, 0.1))
    assert link.round_trip == 0 and link.predicted(100_000) == pytest.approx(0.08, rel=0.2)
