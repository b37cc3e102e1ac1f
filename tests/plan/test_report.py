"""A plan in words: the table, the verdict, the chart's points and the plan file's figures. Without TVM or a clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plan.test_costs import POINTS, Network, costs, rules
from zmq_offload.console.tables import text
from zmq_offload.plan.costs import Costs, Overhead, Split, Stages, in_a_row
from zmq_offload.plan.report import chart, compile_command, facts, figures, table, verdict
from zmq_offload.plan.rules import Rules, allowed_splits
from zmq_offload.plan.search import Decision, decide

LINK = Network(bandwidth=4e6, rtt=0.01)  # slow enough to make it best to cut at "small"
FREE = Rules.none(len(POINTS))


def decided(found: Costs, allowed: Rules = FREE, *, measured: Stages | None = None) -> Decision:
    splits = allowed_splits(POINTS, in_a_row(POINTS), ["float32", "float16"], allowed)
    return decide(found, splits, "latency", 1 if measured else 0, (lambda _: measured) if measured else None)


def test_the_facts_are_the_link_the_overhead_and_the_number_of_splits() -> None:
    found = costs(LINK, overhead=Overhead(0.0004, 2e-9))
    said = dict(facts(found, decided(found), [("device", "a small one")]))
    assert said["device"] == "a small one"
    assert said["link"] == "4Mbit each way, round trip 10 ms"
    assert said["fixed"].startswith("0.40 ms a request and 2.00 ms a MB")
    assert said["looked at"] == "2 cuts, 13 splits, for the best latency"


def test_the_table_has_the_best_then_the_choice_and_both_extremes() -> None:
    found = costs(LINK)
    heading, first, *others = text([table(found, decided(found), FREE, top=1)]).splitlines()[:4]
    assert heading.split()[:2] == ["CUT", "UNTIL"]
    assert first.split()[:3] == ["small", "float16", f"{found.predict(Split(2, 3, 'float16')).sent:,}"]
    assert first.endswith("estimated, chosen")
    assert [row.split("  ")[0] for row in others] == ["(device only)", "(server only)"]


def test_a_measured_split_has_no_time_for_encoding() -> None:
    found = costs(Network(8e8, 0.001), coding=0.0001)
    decision = decided(found, measured=Stages(0.001, 0.001, 0.001))
    heading, row = text([table(found, decision, FREE, top=0)]).splitlines()[:2]
    assert row.endswith("measured, chosen")
    column = heading.index("ENCODE")
    assert row[column : column + 6].strip() == ""


def test_what_the_rules_exclude_is_marked() -> None:
    found = costs(LINK)
    sealed = rules("   w", "www ")  # the last part's weight
    decision = decided(found, sealed)
    (row,) = (line for line in text([table(found, decision, sealed, top=1)]).splitlines() if "device only" in line)
    assert row.endswith("measured, not allowed")


def test_the_verdict_names_the_cut_its_end_its_encoding_and_the_gain() -> None:
    found = costs(LINK)
    said = verdict(found, decided(found), FREE)
    assert said.startswith("Cut at small, float16 on the wire")
    assert "times as good as with all of it on the device" in said
    assert said.endswith("`zmq-offload compile --wire` measures what the encoding costs in accuracy.")

    until = decide(found, [found.local, Split(1, 2)], "latency")
    forced = Decision(until.ranking, found.predict(Split(1, 2)), until.local, "latency")
    said = verdict(found, forced, FREE)
    assert said.startswith("Cut at big, until small, float32 on the wire")
    assert f"by {1 / forced.gain:.1f} times" in said and "compile --wire" not in said


def test_the_verdict_says_that_staying_local_is_best_and_what_excludes_it() -> None:
    far = costs(Network(8e3, 10.0))
    assert verdict(far, decided(far), FREE).startswith("No cut beats staying local: the whole model takes 48.00 ms")
    sealed = rules("   w", "www ")
    assert "the device would hold w." in verdict(far, decided(far, sealed), sealed)


def test_the_chart_has_a_curve_for_each_encoding_and_a_ring_at_the_choice() -> None:
    found = costs(LINK)
    decision = decided(found)
    drawn = chart(found, decision, ["float32", "float16"], "net")
    assert [curve.encoding for curve in drawn.curves] == ["float32", "float16"]
    assert [point.at for point in drawn.curves[0].points] == [0, 1, 2]
    assert drawn.curves[0].sizes == [40_000, 200_000, 4_000]
    assert drawn.local == pytest.approx(48)
    assert drawn.chosen is not None
    assert (drawn.chosen.at, drawn.chosen.measured) == (2, False)
    assert "small as float16" in drawn.summary


def test_the_chart_of_a_plan_that_stays_local_has_no_ring_and_excluded_splits_no_points() -> None:
    far = costs(Network(8e3, 10.0))
    private = rules("    ", "    ", "xx  ")
    drawn = chart(far, decided(far, private), ["float32"], "net")
    assert drawn.chosen is None and "device only" in drawn.summary
    assert [point.at for point in drawn.curves[0].points] == [2]


def test_the_chart_says_where_the_region_ends() -> None:
    found = costs(LINK)
    decision = decide(found, [found.local, Split(1, 2)], "latency")
    decision = Decision(decision.ranking, found.predict(Split(1, 2)), decision.local, "latency")
    assert "big until small as float32" in chart(found, decision, ["float32"], "net").summary


def test_the_command_to_compile_with_is_quoted() -> None:
    command = compile_command(Path("my model.onnx"), Path("plan.json"))
    assert command == "zmq-offload compile 'my model.onnx' --plan plan.json --name NAME"
    assert compile_command(Path("m.onnx"), Path("p"), "rk3588").endswith(" --name NAME --device-target rk3588")


def test_the_figures_of_the_plans_file_are_the_predictions() -> None:
    prediction = costs(LINK).predict(Split(2, 3, "float16"))
    saved = figures(prediction)
    assert saved["latency"] == prediction.latency and saved["sent"] == prediction.sent
    assert saved["latency"] == pytest.approx(
        sum(saved[stage] for stage in ("device", "encode", "uplink", "server", "downlink", "rest", "fixed"))
    )
