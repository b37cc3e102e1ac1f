"""Several cuts for a range of links, and links that change. Without TVM, a clock or a network."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.test_costs import POINTS, ROW, any_costs, costs
from zmq_offload.console.tables import text
from zmq_offload.errors import InvalidArgument
from zmq_offload.plan import cover as covering
from zmq_offload.plan.costs import OBJECTIVES, Costs, Network, Split
from zmq_offload.plan.cover import cover
from zmq_offload.plan.links import Period, links_around, network_of, periods_of
from zmq_offload.plan.report import facts, link_text, several
from zmq_offload.plan.rules import Rules, all_splits
from zmq_offload.plan.search import decide
from zmq_offload.testing.link.trace import Trace

SPLITS = all_splits(ROW, ["float32", "float16"])
LINK = Network(5e7, 0.001)


@given(any_costs(), st.integers(1, 2))
@settings(max_examples=15)
def test_no_other_cuts_serve_the_links_better(found: Costs, many: int) -> None:
    links = links_around(found.network)[::2]
    splits = all_splits(found.crossings, ["float32"])
    over = [found.over(link) for link in links]
    table = {split: np.array([one.predict(split).latency for one in over]) for split in splits}
    least = np.min(list(table.values()), axis=0)

    def regret(chosen: Iterable[Split]) -> float:
        return float((np.min([table[s] for s in (*chosen, found.local)], axis=0) / least).sum())

    chosen = cover(found, splits, "latency", links, many)
    assert len(chosen) <= many
    best = min(map(regret, itertools.combinations(splits[1:], min(many, len(splits) - 1))))
    assert regret(split for own in chosen.values() for split in own) == pytest.approx(best)


def test_each_cut_comes_with_the_encodings_that_are_best_somewhere() -> None:
    found = costs(LINK, coding=0.0004)
    chosen = cover(found, SPLITS, "latency", links_around(LINK), 3)
    assert list(chosen) == [(0, 3), (2, 3)]  # all on the server if the link is fast, late if it is slow
    assert chosen[0, 3] == [Split(0, 3, "float16"), Split(0, 3, "float32")]
    assert list(cover(found, SPLITS, "latency", links_around(LINK), 1)) == [(0, 3)]


def test_where_the_device_alone_is_best_on_all_links_there_are_no_cuts() -> None:
    assert cover(costs(Network(1e3, 1.0)), SPLITS, "latency", [Network(1e3, 1.0)], 3) == {}
    assert cover(costs(LINK), [costs(LINK).local], "latency", links_around(LINK), 3) == {}


def test_with_very_many_sets_cuts_are_chosen_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = costs(LINK, coding=0.0004)
    exact = cover(found, SPLITS, "latency", links_around(LINK), 2)
    monkeypatch.setattr(covering, "_MOST_SETS", 0)
    assert cover(found, SPLITS, "latency", links_around(LINK), 2) == exact


def test_a_link_that_changes_has_the_latency_of_an_item_that_comes_at_any_time() -> None:
    periods = [Period(3.0, 8e6, 4e6, 0.01, False), Period(1.0, 8e5, 4e5, 0.03, False)]
    link = network_of(periods)
    found = costs(LINK)
    for split in SPLITS[1:]:
        own = [found.over(Network(p.up, 2 * p.delay, p.down)).predict(split).latency for p in periods]
        assert found.over(link).predict(split).latency == pytest.approx((3 * own[0] + own[1]) / 4)
    around = links_around(link)
    # A quarter of the time is slow, and the round trip is that of the moment.
    assert {network: around.count(network) for network in around} == {
        Network(8e5, 0.06, 4e5): 8,
        Network(8e6, 0.02, 4e6): 22,
    }


def test_the_rate_over_a_link_that_changes_is_the_average_rate() -> None:
    periods = [Period(2.0, 8e6, 8e6, 0.01, False), Period(2.0, 8e5, 8e5, 0.01, False), Period(4.0, 0.0, 0.0, 0.0, True)]
    found = costs(LINK).over(network_of(periods)).predict(Split(1, 3))
    rates = [1 / (found.sent * 8 / 8e6), 1 / (found.sent * 8 / 8e5), 0.0]
    assert 1 / found.interval == pytest.approx((2 * rates[0] + 2 * rates[1]) / 8)


def test_who_meets_a_stall_waits_for_its_end() -> None:
    passing, stall = Period(3.0, 8e6, 8e6, 0.01, False), Period(1.0, 8e6, 8e6, 0.01, True)
    # One of four seconds is the stall, and who comes then waits for half a second.
    assert network_of([passing, stall]).rtt == pytest.approx(0.02 + 0.25 * 0.5)
    assert network_of([stall, passing]).rtt == pytest.approx(0.02 + 0.25 * 0.5)
    # A stall in two rows is one stall.
    half = stall._replace(seconds=0.5)
    assert network_of([passing, half, half]).rtt == pytest.approx(0.02 + 0.25 * 0.5)
    assert network_of([passing]) == Network(8e6, 0.02, 8e6, network_of([passing]).moments)
    with pytest.raises(InvalidArgument, match="the trace lets nothing through; expected a period without a stall"):
        network_of([stall])


def test_a_trace_has_the_periods_between_its_moments() -> None:
    trace = Trace.parse("seconds,up,down,delay,stall\n0,8,4,10,0\n3,0.8,0.4,30,0\n\n4,0,0,0,1\n", "t")
    assert periods_of(trace) == [
        Period(3.0, 8e6, 4e6, 0.01, False),
        Period(1.0, 8e5, 4e5, 0.03, False),
        Period(1.0, 0.0, 0.0, 0.0, True),
    ]


def test_the_report_has_a_line_for_each_link() -> None:
    found, links = costs(LINK, coding=0.0004), [Network(1e3, 0.001), *links_around(LINK)]
    decision = decide(found, SPLITS, "latency")
    chosen = cover(found, SPLITS, "latency", links, 2)
    lines = text([several(found, chosen, links, decision)]).splitlines()
    assert lines[0].split() == ["UP", "RTT", "CUT", "UNTIL", "WIRE", "TIME", "BEST", "DEVICE", "ONLY"]
    assert lines[1].split()[0] == "1kbit" and "(device only)" in lines[1]
    assert len(lines) == 1 + len(links) and lines[-1].split()[0] == "800Mbit"
    assert len(text([several(found, chosen, 30 * links, decision)]).splitlines()) == 1 + 10
    both = found.over(Network(8e6, 0.01, 4e6))
    assert link_text(both.network) == "8Mbit, 10 ms"
    assert dict(facts(both, decision, []))["link"] == "8Mbit up, 4Mbit down, round trip 10 ms"


def test_rules_and_objectives_hold_for_several_cuts() -> None:
    sealed = Rules((frozenset(), frozenset(), frozenset("w"), frozenset("w")), (frozenset(),) * 4, (frozenset(),) * 4)
    allowed = [split for split in SPLITS if sealed.allow(split)]
    for objective in OBJECTIVES:
        chosen = cover(costs(LINK), allowed, objective, links_around(LINK), 3)
        assert {start for start, _ in chosen} <= {0, 1} and len(POINTS) == 4
