"""One direction of the emulated link, with a clock of the test's own; and the parsing of conditions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.errors import InvalidArgument
from zmq_offload.testing.link.conditions import Conditions, Outage, timetable
from zmq_offload.testing.link.path import HELD, QUEUE, Path


def path(bandwidth: float | None = None, rtt: float = 0.0, jitter: float = 0.0, chance: float = 0.5) -> Path[str]:
    return Path(Conditions(bandwidth, rtt, jitter), lambda: chance)


def arrivals(link: Path[str], until: float = 1e9) -> list[tuple[float, str, bytes]]:
    """All bytes in flight with their arrival times, as a relay with a perfect clock would deliver them."""
    found, now = [], 0.0
    while link.held and (at := link.next_change(now)) is not None and at <= until:
        now = max(now, at)
        found += [(now, key, data) for key, data in link.arrived(now)]
    return found


def test_bytes_take_half_the_rtt() -> None:
    link = path(rtt=0.01)
    link.take("a", b"x", 1.0)
    assert link.next_change(1.0) == pytest.approx(1.005)
    assert list(link.arrived(1.0049)) == []
    assert list(link.arrived(1.0051)) == [("a", b"x")]
    assert link.next_change(1.0051) is None


def test_bytes_of_all_connections_queue_for_the_bandwidth() -> None:
    link = path(bandwidth=8e6)  # one byte per microsecond
    link.take("a", bytes(1000), 0.0)
    link.take("b", bytes(500), 0.0)
    link.take("a", bytes(100), 0.01)  # the link is idle by then
    times = [at for at, _, _ in arrivals(link)]
    assert times == pytest.approx([0.001, 0.0015, 0.0101])


def test_a_sender_waits_while_the_queue_is_full_and_learns_when_it_is_not() -> None:
    link = path(bandwidth=8e6, rtt=1.0)
    for _ in range(int(QUEUE * 1000)):
        assert link.has_room(0.0)
        link.take("a", bytes(1000), 0.0)
    assert not link.has_room(0.0)
    again = link.next_change(0.0)
    assert again is not None and 0 < again < QUEUE
    assert link.has_room(again)


def test_bytes_in_flight_do_not_delay_the_sender() -> None:
    link = path(bandwidth=8e6, rtt=2.0)
    for at in range(1000):  # a second of sending, all in flight at once
        assert link.has_room(at / 1000)
        link.take("a", bytes(1000), at / 1000)
    assert link.held == 1_000_000


def test_memory_is_bounded_even_with_unlimited_bandwidth() -> None:
    link = path(rtt=1.0)
    taken = 0
    while link.has_room(0.0):
        link.take("a", bytes(65536), 0.0)
        taken += 65536
    assert HELD <= taken < HELD + 65537
    assert len(list(link.arrived(0.5))) == taken // 65536
    assert link.has_room(0.5)


def test_jitter_varies_the_delay_both_ways() -> None:
    for chance, delay in ((0.0, 0.004), (0.5, 0.005), (1.0, 0.006)):
        link = path(rtt=0.01, jitter=0.002, chance=chance)
        link.take("a", b"x", 0.0)
        assert link.next_change(0.0) == pytest.approx(delay)


def test_nothing_moves_in_a_stall_and_everything_continues_after_it() -> None:
    link = path(bandwidth=8e6, rtt=0.01)
    link.take("a", bytes(1000), 0.0)
    link.stall(0.003)
    assert list(link.arrived(100.0)) == []
    assert not link.has_room(100.0)
    assert link.next_change(100.0) is None
    link.resume(2.003)
    assert [at for at, _, _ in arrivals(link)] == pytest.approx([2.006])
    link.take("a", bytes(1000), 2.003)
    assert [at for at, _, _ in arrivals(link)] == pytest.approx([2.009])


def test_a_stall_that_is_repeated_counts_once() -> None:
    link = path(rtt=0.01)
    link.take("a", b"x", 0.0)
    link.stall(0.001)
    link.stall(0.002)
    link.resume(0.003)
    link.resume(0.004)
    assert [at for at, _, _ in arrivals(link)] == pytest.approx([0.007])


def test_cleared_bytes_never_arrive_and_delay_nothing() -> None:
    link = path(bandwidth=8e6, rtt=0.01)
    link.take("a", bytes(100_000), 0.0)
    link.clear()
    assert link.held == 0 and link.has_room(0.0) and link.next_change(0.0) is None
    link.take("a", b"x", 0.0)
    assert [key for _, key, _ in arrivals(link)] == ["a"]


def test_changed_conditions_are_for_later_bytes_which_do_not_overtake() -> None:
    link = path(rtt=1.0)
    link.take("a", b"1", 0.0)
    link.change(Conditions(None, 0.01, 0.0))
    link.take("a", b"2", 0.0)
    assert [(at, data) for at, _, data in arrivals(link)] == [(0.5, b"1"), (0.5, b"2")]
    link.take("a", b"3", 1.0)
    assert link.next_change(1.0) == pytest.approx(1.005)


@given(
    bandwidth=st.sampled_from([None, 1e6, 1e8]),
    rtt=st.sampled_from([0.0, 0.002, 0.05]),
    share=st.floats(0, 1),
    sizes=st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 0.01)), min_size=1, max_size=40),
    chances=st.lists(st.floats(0, 1), min_size=1, max_size=7),
    outages=st.lists(st.tuples(st.integers(0, 39), st.floats(0, 0.1)), max_size=3),
)
def test_everything_arrives_in_order_and_within_its_bounds(
    bandwidth: float | None,
    rtt: float,
    share: float,
    sizes: list[tuple[int, float]],
    chances: list[float],
    outages: list[tuple[int, float]],
) -> None:
    drawn = iter(chances * 40)
    jitter = rtt * share
    link: Path[int] = Path(Conditions(bandwidth, rtt, jitter), lambda: next(drawn))
    now = lost = 0.0
    taken, stalls = [], dict(outages)
    for number, (size, pause) in enumerate(sizes):
        now += pause
        if number in stalls:
            link.stall(now)
            now += stalls[number]
            lost += stalls[number]
            link.resume(now)
        link.take(number, bytes(size), now)
        taken.append(now)
    out, at = [], 0.0
    while link.held or len(out) < len(sizes):
        change = link.next_change(at)
        assert change is not None
        at = max(at, change)
        out += [(at, key, len(data)) for key, data in link.arrived(at)]
    assert [key for _, key, _ in out] == list(range(len(sizes)))
    assert [size for _, _, size in out] == [size for size, _ in sizes]
    work = sum(size for size, _ in sizes) * 8 / bandwidth if bandwidth else 0.0
    for arrived, key, size in out:
        alone = size * 8 / bandwidth if bandwidth else 0.0
        assert arrived >= taken[key] + alone + (rtt - jitter) / 2 - 1e-9
        assert arrived <= taken[key] + work + (rtt + jitter) / 2 + lost + 1e-9


def test_conditions_are_parsed_with_units() -> None:
    found = Conditions.parse("100Mbit", "10ms", "1ms")
    assert (found.bandwidth, found.rtt, found.jitter) == (1e8, 0.01, 0.001)
    assert str(found) == "bandwidth 100Mbit, rtt 10 ms, jitter 1 ms"
    with pytest.raises(InvalidArgument, match="did you mean 50Mbit"):
        Conditions.parse("50", "10ms")
    with pytest.raises(InvalidArgument, match="did you mean 10ms"):
        Conditions.parse("50Mbit", "10")
    with pytest.raises(InvalidArgument, match="jitter 11ms is more than the rtt 10ms"):
        Conditions.parse("50Mbit", "10ms", "11ms")


def test_outages_are_parsed_and_sorted() -> None:
    outages = [Outage.parse("5:2:refuse"), Outage.parse("0.5:0.25")]
    assert outages == [Outage(5, 2, "refuse"), Outage(0.5, 0.25, "stall")]
    assert timetable(outages) == [(0.5, "stall"), (0.75, None), (5, "refuse"), (7, None)]
    with pytest.raises(InvalidArgument, match="the outages at 1 s and 2 s overlap"):
        timetable([Outage(2, 1), Outage(1, 1.5)])


@pytest.mark.parametrize("text", ["5", "5:", "a:1", "5:2:stall it", "-1:2", "1:0", "nan:1", "1:inf"])
def test_a_wrong_outage_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"outage '{text}'"):
        Outage.parse(text)
