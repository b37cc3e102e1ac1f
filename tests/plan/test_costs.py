"""The predictions, rules and choices of `zmq-offload plan`, without TVM, a clock or a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmq_offload.errors import InvalidArgument
from zmq_offload.plan.costs import (
    OBJECTIVES,
    WIRES,
    Costs,
    Crossing,
    CutPoint,
    Handling,
    Network,
    Overhead,
    Split,
    Stages,
    Times,
    in_a_row,
    message_bytes,
)
from zmq_offload.plan.files import FORMAT_VERSION, CutTimes, Plan, PlannedCut, PlannedModel
from zmq_offload.plan.report import table, verdict
from zmq_offload.plan.rules import Rules, all_splits, allowed_splits, check_names
from zmq_offload.plan.search import decide
from zmq_offload.plan.slow import SlowProcessor
from zmq_offload.protocol import messages
from zmq_offload.protocol.payload import encode_tensors
from zmq_offload.protocol.tensors import TensorSpec


def point(name: str, elements: int, datatype: str = "FP32") -> CutPoint:
    return CutPoint((TensorSpec(name, datatype, (1, elements)),))


NO_OVERHEAD = Overhead()
POINTS = (point("x", 10_000), point("big", 50_000), point("small", 1_000), point("y", 10))
ROW = in_a_row(POINTS)


def times(pieces: Sequence[float], coding: float = 0.0) -> Times:
    """The times of a model whose pieces between neighboring points take `pieces` seconds."""
    size = len(pieces) + 1
    before = tuple(sum(pieces[:at]) for at in range(size))
    coders = {w: (0.0 if w == "float32" else coding,) * size for w in WIRES}
    return Times(before, tuple(sum(pieces[at:]) for at in range(size)), coders, coders)


def costs(link: Network, slowdown: float = 8.0, coding: float = 0.0, overhead: Overhead = NO_OVERHEAD) -> Costs:
    one = times([0.001, 0.002, 0.003], coding)
    return Costs(POINTS, ROW, one.slowed(slowdown), one, link, overhead)


LINK = Network(bandwidth=8e6, rtt=0.01)  # a megabyte a second


def test_a_cut_costs_the_devices_part_the_way_there_the_servers_part_and_the_way_back() -> None:
    found = costs(LINK, coding=0.0005, overhead=Overhead(0.0004, 1e-9)).predict(Split(2, 3, "float16"))
    sent, received = found.sent, found.received
    assert found.device == pytest.approx(8 * 0.003)
    assert found.encode == pytest.approx(8 * 0.0005)
    assert 2_000 < sent < 2_200 and 20 < received < 200
    assert found.uplink == pytest.approx(0.005 + sent / 1e6)
    assert found.server == pytest.approx(0.0005 + 0.003 + 0.0005)
    assert found.downlink == pytest.approx(0.005 + received / 1e6)
    assert found.rest == pytest.approx(8 * 0.0005)
    assert found.overhead == pytest.approx(0.0004 + (sent + received) * 1e-9)
    whole = 0.024 + 0.004 + 0.004 + 0.004 + 0.01 + 0.0004 + (sent + received) * (1e-6 + 1e-9)
    assert found.latency == pytest.approx(whole)
    assert found.device_time == pytest.approx(0.032)


def test_the_rate_is_that_of_the_slowest_stage_and_a_round_trip_holds_up_nothing() -> None:
    slow = costs(LINK).predict(Split(1, 3))
    assert slow.interval == LINK.up_time(slow.sent) == pytest.approx(0.2, rel=0.01)
    assert costs(Network(8e6, 10.0)).predict(Split(1, 3)).interval == slow.interval
    fast = costs(Network(1e12, 0.01)).predict(Split(1, 3))
    assert fast.interval == fast.device_time == pytest.approx(0.008)


def test_messages_occupy_both_sides_when_items_are_pipelined() -> None:
    link, handled = Network(1e12, 0.01), Overhead(0.0, 0.0, Handling(0.003, 1e-7), Handling(0.5, 1e-7))
    found = costs(link, overhead=handled)
    both = found.predict(Split(1, 3))
    assert both.interval == pytest.approx(0.005 + 0.5 + (both.sent + both.received) * 1e-7)
    assert both.latency == costs(link).predict(Split(1, 3)).latency
    # A server that was measured has the messages in its time.
    found.measured[Split(1, 3)] = Stages(0.008, 0.005, 0.0, turn=0.006)
    both = found.predict(Split(1, 3))
    assert both.interval == pytest.approx(0.008 + 0.003 + (both.sent + both.received) * 1e-7)
    found.measured[Split(1, 3)] = Stages(0.008, 0.005, 0.0, turn=0.2)
    assert found.predict(Split(1, 3)).interval == 0.2


def test_a_region_in_the_middle_comes_back_to_the_device() -> None:
    found = costs(LINK).predict(Split(1, 2))
    assert (found.device, found.server, found.rest) == pytest.approx((0.008, 0.002, 0.024))


def test_no_split_is_the_whole_model_on_the_device_and_nothing_else() -> None:
    found = costs(LINK).predict(Split(3, 3))
    assert found.local and found.latency == found.interval == found.device_time == pytest.approx(0.048)
    assert found.sent == found.received == 0


def test_a_message_is_as_long_as_what_is_sent() -> None:
    import numpy as np

    tensors = POINTS[1].sent("int8")
    arrays = [(t.name, np.zeros(t.shape, t.dtype)) for t in tensors]
    frames = encode_tensors(arrays)
    assert [t.datatype for t in tensors] == ["INT8", "FP32"]
    envelope = messages.encode(messages.Request(bytes(16), 2**31, "model", 0, 2**31, 0))
    content = sum(map(len, frames)) + len(envelope)
    assert content + 2 * 4 <= message_bytes(tensors, answer=False) <= content + 9 * 4
    assert message_bytes(tensors, answer=False) > 50_008


def test_only_float32_is_encoded_and_nothing_that_would_not_be_smaller() -> None:
    assert point("i", 5, "INT64").sent("float16") == point("i", 5, "INT64").tensors
    assert point("f", 2).sent("int8") == point("f", 2).tensors
    assert [t.datatype for t in point("f", 3).sent("int8")] == ["INT8", "FP32"]
    wires = {s.wire for s in all_splits(in_a_row((point("i", 5, "INT64"), point("y", 5))), WIRES)}
    assert wires == {"float32", "float16"}  # int8 scales a range of values, which indices are not


positive = st.floats(1e-6, 1.0)


@st.composite
def any_costs(draw: st.DrawFn) -> Costs:
    sizes = draw(st.lists(st.integers(1, 100_000), min_size=2, max_size=6))
    pieces = draw(st.lists(positive, min_size=len(sizes) - 1, max_size=len(sizes) - 1))
    coding = draw(st.floats(0, 0.01))
    one = times(pieces, coding)
    link = Network(draw(st.floats(1e3, 1e10)), draw(st.floats(0, 1)))
    points = tuple(point(f"t{at}", size) for at, size in enumerate(sizes))
    return Costs(
        points, in_a_row(points), one.slowed(draw(st.floats(1, 100))), one, link, Overhead(draw(st.floats(0, 0.1)), 0.0)
    )


@given(any_costs(), st.sampled_from(sorted(OBJECTIVES)))
def test_what_is_chosen_is_the_best_of_all_and_never_worse_than_staying_local(found: Costs, objective: str) -> None:
    splits = all_splits(found.crossings, WIRES)
    decision = decide(found, splits, objective)  # type: ignore[arg-type]
    least = OBJECTIVES[objective]  # type: ignore[index]
    assert least(decision.chosen) == min(least(found.predict(s)) for s in splits)
    assert decision.gain >= 1
    assert {p.split for p in decision.ranking} == set(splits)


@given(any_costs())
def test_a_better_link_makes_nothing_slower(found: Costs) -> None:
    better = Costs(
        found.points,
        found.crossings,
        found.device,
        found.server,
        Network(2 * found.network.bandwidth, found.network.rtt / 2),
    )
    for split in all_splits(found.crossings, WIRES):
        was, now = found.predict(split), better.predict(split)
        assert now.latency <= was.latency
        assert now.interval <= was.interval
        assert was.interval <= was.latency + 1e-12
        assert now.device_time == was.device_time


def test_what_the_server_does_not_need_stays_on_the_device_and_is_not_encoded() -> None:
    both = CutPoint((*POINTS[1].tensors, *POINTS[2].tensors))
    points = (POINTS[0], both, CutPoint((*POINTS[1].tensors, *point("inner", 1_000).tensors)), POINTS[3])
    one = times([0.001, 0.002, 0.003], 0.0051)
    around = {(1, 2): Crossing(POINTS[2], point("inner", 1_000))}
    found = Costs(points, in_a_row(points) | around, one.slowed(8), one, LINK).predict(Split(1, 2, "int8"))
    assert found.sent == message_bytes(POINTS[2].sent("int8"), answer=False)
    assert (found.encode, found.server) == pytest.approx((8 * 0.0001, 0.002 + 2 * 0.0001))


@given(any_costs())
def test_parts_in_the_middle_add_up(found: Costs) -> None:
    last = len(found.points) - 1
    for start in range(last):
        for end in range(start + 1, last + 1):
            sum_of = found.server.before[start] + found.server.between(start, end) + found.server.after[end]
            assert sum_of == pytest.approx(found.server.whole)


def test_the_best_are_measured_until_the_best_is_measured_and_only_then_chosen() -> None:
    found = costs(Network(1e9, 0.001))
    asked: list[Split] = []

    def measure(split: Split) -> Stages:
        asked.append(split)
        return Stages(1.0, 1.0) if split.start == 0 else Stages(0.009, 0.005)

    splits = all_splits(ROW, WIRES)
    decision = decide(found, splits, "latency", 3, measure)
    assert asked[0].start == 0 and asked[0].end == 3  # the best estimate was far too low
    assert decision.chosen.measured
    assert len(asked) == len(set(asked)) <= 3
    assert decide(costs(Network(1e9, 0.001)), splits, "latency").chosen.split == asked[0]


def test_a_part_in_the_middle_is_measured_where_the_device_alone_is_better_than_all_that_end_with_the_model() -> None:
    points = (*POINTS[:3], point("y", 100_000))  # a large result
    one = times([0.001, 0.002, 0.003])
    link = Network(8e6, 0.0)
    found = Costs(points, in_a_row(points), times([0.0, 9.0, 0.0]), one, link)
    assert decide(found, all_splits(found.crossings, ["float32"]), "latency").chosen.split == Split(0, 2)
    far = Costs(points, in_a_row(points), times([0.0, 0.2, 0.0]), one, link)
    chosen = decide(far, all_splits(far.crossings, ["float32"]), "latency", 3, lambda _: Stages(0.0, 0.002)).chosen
    assert chosen.split == Split(0, 2) and chosen.measured


@given(any_costs(), st.floats(0.95, 1.05), st.floats(0.95, 1.05))
@settings(max_examples=50)
def test_with_estimates_within_5_percent_the_choice_is_within_11_of_the_best(
    true: Costs, device: float, server: float
) -> None:
    """What is chosen was measured, and everything else looked worse."""

    def measured(split: Split) -> Stages:
        p = true.predict(split)
        return Stages(p.device + p.encode, p.server, p.rest)

    guessed = replace(true, device=true.device.slowed(device), server=true.server.slowed(server), measured={})
    splits = all_splits(true.crossings, WIRES)
    chosen = decide(guessed, splits, "latency", len(splits), measured).chosen
    own = true.predict(chosen.split).latency
    assert own <= min(true.predict(s).latency for s in splits) * 1.05 / 0.95 + 1e-9


def test_a_link_that_is_bad_enough_keeps_everything_on_the_device() -> None:
    found = costs(Network(1e4, 1.0))
    asked: list[Split] = []
    decision = decide(found, all_splits(ROW, WIRES), "latency", 4, lambda s: asked.append(s) or Stages(9, 9))
    assert decision.chosen.local
    assert verdict(found, decision, Rules.none(4)).startswith("No cut beats staying local: the whole model takes 48.00")
    shown = str(table(found, decision, Rules.none(4), 3))
    assert "(device only)" in shown and "(server only)" in shown


# --- rules ------------------------------------------------------------------------------------------------------

NONE = frozenset[str]()
W = frozenset({"w"})


def rules(before: str, after: str, raw: str = "    ") -> Rules:
    """One letter per point: "w" where the sealed weight is needed, "x" where the private input is raw."""
    return Rules(
        tuple(W if c == "w" else NONE for c in before),
        tuple(W if c == "w" else NONE for c in after),
        tuple(frozenset({"x"}) if c == "x" else NONE for c in raw),
    )


def test_a_sealed_weight_is_never_on_the_device() -> None:
    # Used between "big" and "small".
    found = {(s.start, s.end) for s in allowed_splits(POINTS, ROW, ["float32"], rules("  ww", "ww  "))}
    assert found == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_a_private_input_is_not_sent_and_stays_where_nothing_is_sent() -> None:
    found = {(s.start, s.end) for s in allowed_splits(POINTS, ROW, ["float32"], rules("    ", "    ", "xx  "))}
    assert found == {(3, 3), (2, 3)}


def test_a_private_input_that_stays_on_the_device_excludes_nothing() -> None:
    private = replace(rules("    ", "    ", "xx  "), sent_raw={(1, 2): NONE})
    found = {(s.start, s.end) for s in allowed_splits(POINTS, ROW, ["float32"], private)}
    assert found == {(3, 3), (2, 3), (1, 2)}


def test_what_leaves_nothing_says_what_excludes_what() -> None:
    with pytest.raises(InvalidArgument) as caught:
        allowed_splits(POINTS, ROW, WIRES, rules("  ww", "ww  ", "xx  "))
    assert caught.value.message == (
        "no split is allowed: --seal 'w' excludes device only; --private 'x' excludes sending 'x', 'big'; "
        "--seal 'w' excludes cutting at 'small'"
    )

    # Only the last part needs the weight, so no cut is excluded for it.
    with pytest.raises(InvalidArgument) as caught:
        allowed_splits(POINTS, ROW, ["float32"], rules("   w", "www ", "xxx "))
    assert caught.value.message == (
        "no split is allowed: --seal 'w' excludes device only; --private 'x' excludes sending 'x', 'big', 'small'"
    )


def test_unknown_names_come_with_the_nearest() -> None:
    check_names("--seal", ["head.w"], ["head.w", "stem.w"], "weight")
    with pytest.raises(InvalidArgument, match=r"--seal: the model has no weight 'hed.w'; did you mean 'head.w'"):
        check_names("--seal", ["hed.w"], ["head.w", "stem.w"], "weight")


# --- files ------------------------------------------------------------------------------------------------------


def planned(model: Path) -> PlannedModel:
    return PlannedModel.of(model, POINTS[0].tensors)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"a model")
    return file


def test_a_profile_comes_back_as_it_was_and_is_of_one_model(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    profile = CutTimes(planned(model), "phone", 1, POINTS, times([1, 2, 3], 0.1))
    profile.write(file)
    assert CutTimes.read(file) == profile
    assert CutTimes.read(file).times_for(model, POINTS, file) == profile.times
    other = tmp_path / "other.onnx"
    other.write_bytes(b"another")
    with pytest.raises(
        InvalidArgument, match=r"profile\.json belongs to another model, m\.onnx, and not to this other\.onnx"
    ):
        profile.times_for(other, POINTS, file)
    with pytest.raises(InvalidArgument, match=r"was made with --input x=1,10000; x=1,5 is given"):
        profile.times_for(model, (point("x", 5), *POINTS[1:]), file)
    with pytest.raises(InvalidArgument, match="other cuts"):
        profile.times_for(model, (POINTS[0], POINTS[2], POINTS[3]), file)


def test_a_plan_comes_back_as_it_was(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan = Plan(planned(model), ("small",), (), "int8", "latency", {"latency": 0.1})
    plan.write(file)
    assert Plan.read(file) == plan and not plan.local
    plan.model.check(model, file, {"x": (1, 10_000)})


def test_the_cuts_of_a_plan_come_back_as_they_were(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    stages = {"device": 0.1, "server": 0.2, "rest": 0.0}
    cuts = PlannedCut(("small",), (), ("int8", "float32"), {"int8": stages}), PlannedCut(("big",), ("c",), ("float16",))
    plan = Plan(planned(model), ("small",), (), "int8", "latency", {}, cuts=cuts)
    plan.write(file)
    assert Plan.read(file) == plan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": 99}, f"format_version is 99, this release reads {FORMAT_VERSION}"),
        ({"format": "zmq-offload profile of cuts"}, "is not a zmq-offload plan; create one with"),
        ({"wire": "int4"}, "is damaged: wire is 'int4'; expected 'float32' or 'float16' or 'int8'"),
        ({"cut": "small"}, "is damaged: cut is 'small'; expected array"),
        ({"model": 3}, "is damaged: model is 3; expected object"),
        ({"predicted": None}, "is damaged: predicted is None; expected object"),
        ({"cuts": [{"cut": [], "until": [], "wires": ["int8"]}]}, "is damaged: .*cut is empty; expected at least one"),
        ({"cuts": [{"cut": ["a"], "until": [], "wires": []}]}, "is damaged: .*wires is empty; expected at least one"),
        (
            {"cuts": [{"cut": ["a"], "until": [], "wires": ["int8"], "predicted": {"int4": {}}}]},
            "is damaged: .*predicted has 'int4'; expected encodings of wires",
        ),
    ],
)
def test_files_of_another_kind_or_version_or_damaged_ones(
    change: dict[str, object], says: str, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    Plan(planned(model), ("small",), (), "int8", "latency", {}).write(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InvalidArgument, match=says):
        Plan.read(file)
    file.write_text("{")
    with pytest.raises(InvalidArgument, match="is not a zmq-offload plan: it is not JSON"):
        Plan.read(file)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        Plan.read(tmp_path / "missing.json")


def test_a_damaged_profile_is_refused(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    CutTimes(planned(model), "phone", 1, POINTS, times([1, 2, 3])).write(file)
    good = json.loads(file.read_text())
    for seconds in ({"before": [1]}, {"before": [-1] * 4}, {"encode": {}}, {"behind": ["a"] * 4}):
        file.write_text(json.dumps(good | {"seconds": good["seconds"] | seconds}))
        with pytest.raises(InvalidArgument, match="is damaged"):
            CutTimes.read(file)


# --- the slow device --------------------------------------------------------------------------------------------


def test_stages_of_a_slow_processor_are_stretched_and_follow_each_other() -> None:
    slow = SlowProcessor(4)
    assert slow.stage(10.0, 0.5) == pytest.approx((9.5, 11.5))
    # Another thread computed at the same time and waits for the processor.
    assert slow.stage(10.5, 0.5) == pytest.approx((11.5, 13.5))
    assert slow.stage(20.0, 0.5) == pytest.approx((19.5, 21.5))
    with pytest.raises(InvalidArgument, match="0 is not a slowdown"):
        SlowProcessor(0)
