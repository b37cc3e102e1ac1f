"""The gateway's statistics."""

from __future__ import annotations

from zmq_offload.client.results import Timings
from zmq_offload.gateway.statistics import SIZES, Duration, Statistics, VersionStatistics

TIMINGS = Timings(queue=0.001, compute=0.002, broker=0.004, total=0.005)


def test_a_version_without_requests_has_zeros() -> None:
    statistics = Statistics()
    found = statistics.of("m", 1)
    assert found == VersionStatistics() and found.batches(batched=False) == found.batches(batched=True) == []
    found.fail.add(1.0)
    assert statistics.of("m", 1) == VersionStatistics(), "looking does not count"


def test_requests_are_counted_by_version_and_batch_size() -> None:
    statistics = Statistics()
    for rows in (4, 1, 4):
        statistics.count("m", 2).succeeded(rows, TIMINGS, 1e9)
    statistics.count("m", 2).fail.add(0.5)
    found = statistics.of("m", 2)
    assert (found.last, found.success, found.fail) == (10**12, Duration(3, 15_000_000), Duration(1, 500_000_000))
    assert (found.queue, found.compute) == (Duration(3, 3_000_000), Duration(3, 6_000_000))
    assert (found.inferences(batched=True), found.inferences(batched=False)) == (9, 3)
    assert found.batches(batched=True) == [(1, Duration(1, 2_000_000)), (4, Duration(2, 4_000_000))]
    assert found.batches(batched=False) == [(1, Duration(3, 6_000_000))]
    assert statistics.of("m", 1) == VersionStatistics()


def test_clients_do_not_fill_the_memory_with_batch_sizes() -> None:
    found = VersionStatistics()
    for rows in range(1, SIZES + 10):
        found.succeeded(rows, TIMINGS, 1.0)
    assert len(found.batches(batched=True)) == SIZES
    assert found.success.count == SIZES + 9 and found.inferences(batched=True) == sum(range(SIZES + 10))
