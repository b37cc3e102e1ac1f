"""Cuts at several tensors of real graphs: what crosses, what stays on the device, and that they compile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.benchmarks import models
from tests.compile.test_cuts import masked
from tests.support import onnx_models
from zmq_offload.byoc.region import Region, resolve_regions
from zmq_offload.compile.api import compile_model
from zmq_offload.compile.models.read import read_model
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.target import host_target
from zmq_offload.plan.confirm import measure_split, names_of
from zmq_offload.plan.costs import Split
from zmq_offload.plan.cuttable import Cuttable, cuttable, most_places
from zmq_offload.plan.halves import build_parts
from zmq_offload.plan.parts import measure_parts
from zmq_offload.plan.restrictions import rules_of
from zmq_offload.plan.rules import allowed_splits


def conv(source: str, name: str) -> list[object]:
    made = helper.make_node("Conv", [source, f"{name}.w"], [f"{name}.c"], kernel_shape=[3, 3], pads=[1] * 4)
    return [made, helper.make_node("Relu", [f"{name}.c"], [name])]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels with shortcuts, and an output that is computed early."""
    nodes = [
        *conv("x", "a"),
        helper.make_node("MaxPool", ["a"], ["a.small"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ReduceMean", ["a.small"], ["early"], axes=[1, 2, 3]),
        *conv("a.small", "b"),
        helper.make_node("MaxPool", ["b"], ["b.small"], kernel_shape=[2, 2], strides=[2, 2]),
        *conv("b.small", "c"),
        helper.make_node("Resize", ["c", "", "scales"], ["c.large"], mode="nearest"),
        helper.make_node("Concat", ["c.large", "b"], ["d.in"], axis=1),
        *conv("d.in", "d"),
        helper.make_node("Resize", ["d", "", "scales"], ["d.large"], mode="nearest"),
        helper.make_node("Concat", ["d.large", "a"], ["y.in"], axis=1),
        *conv("y.in", "y"),
    ]
    channels = {"a": (4, 3), "b": (8, 4), "c": (8, 8), "d": (4, 16), "y": (2, 8)}
    weights = {f"{name}.w": onnx_models.random(*io, 3, 3, seed=at) for at, (name, io) in enumerate(channels.items())}
    weights["scales"] = np.array([1, 1, 2, 2], "f4")
    outputs = {"y": [1, 2, 16, 16], "early": [1, 1, 1, 1]}
    return onnx_models.write(
        tmp_path_factory.mktemp("unet") / "unet.onnx", nodes, {"x": [1, 3, 16, 16]}, outputs, weights
    )


@pytest.fixture(scope="module")
def model(unet: Path) -> Cuttable:
    return cuttable(import_onnx(unet, {}))


def test_shortcuts_are_part_of_the_cuts(model: Cuttable) -> None:
    assert [point.name for point in model.points] == [
        "x", "a", "a, b", "a, b, c", "a, d", "y.c", "y, early",
    ]  # fmt: skip
    assert [len(computed) for computed in model.computed] == [0, 0, 1, 1, 1, 1, 2]
    assert [p.name for p in cuttable(model.imported, most_tensors=1).points] == ["x", "a", "y.c", "y, early"]


def test_of_large_models_fewer_places_are_compared() -> None:
    assert [most_places(size) for size in (0, 10**7, 10**8, 10**9)] == [96, 96, 30, 12]


def test_what_goes_around_the_servers_part_stays_on_the_device(model: Cuttable) -> None:
    names = [point.name for point in model.points]
    inner = names.index("a, b"), names.index("a, d")
    assert [point.name for point in model.crossings[inner]] == ["b", "d"]
    assert names_of(model, Split(*inner)) == (("b",), ("d",))
    bottom = names.index("a, b"), names.index("a, b, c")
    assert [point.name for point in model.crossings[bottom]] == ["b", "c"]
    assert names_of(model, Split(names.index("a, b, c"), len(names) - 1)) == (("a", "b", "c"), ("y",))
    assert names_of(model, Split(0, len(names) - 1)) == (("x",), ())


@pytest.mark.parametrize(("start", "end"), [("a, b, c", "y, early"), ("a, b", "a, d")])
def test_every_such_split_compiles_and_is_the_model(
    start: str, end: str, model: Cuttable, unet: Path, tmp_path: Path
) -> None:
    names = [point.name for point in model.points]
    split = Split(names.index(start), names.index(end), "float16")
    cut, until = names_of(model, split)
    compiled = compile_model(
        unet, cut=cut, until=until or None, wire="float16", name="part", check=True, output=tmp_path
    )
    assert compiled.check is not None
    sent, received = model.crossings[split.start, split.end]
    region = compiled.manifest.offloaded[0]
    assert {t.name for t in region.inputs} == {t.name for t in sent.tensors}
    assert {t.name for t in region.outputs} == {t.name for t in received.tensors}


@pytest.mark.parametrize("name", ["unet", "masked", "resnet", "transformer"])
def test_every_split_is_a_region_that_takes_and_returns_what_the_plan_counts(
    name: str, unet: Path, tmp_path: Path
) -> None:
    file = unet if name == "unet" else tmp_path / "m.onnx"
    if name == "masked":
        masked(file)
    elif name != "unet":
        onnx.save({"resnet": models.resnet, "transformer": models.transformer}[name](), file)
    found = cuttable(import_onnx(file, {}))
    assert max(len(point.tensors) for point in found.points) >= 2
    assert len(found.crossings) > 10
    for (start, end), (sent, received) in found.crossings.items():
        cut, until = names_of(found, Split(start, end))
        (region,) = resolve_regions(found.imported.graph, [Region("part", cut, until or None)])
        assert sorted(region.cuts.values()) == sorted(t.name for t in sent.tensors)
        assert sorted(region.untils.values()) == sorted(t.name for t in received.tensors)


def test_such_a_split_is_measured_with_a_broker_and_a_worker(model: Cuttable, unet: Path) -> None:
    stages = measure_split(unet, model, Split(2, 4, "int8"), (host_target(), host_target()), (1, 1), 3, 2.0)
    assert min(stages.device, stages.server, stages.rest, stages.turn) > 0


def test_their_times_are_carried_over_from_another_machine(model: Cuttable, unet: Path, tmp_path: Path) -> None:
    """As from a device, or from a server of another kind, which compile nothing."""
    build_parts(unet, {}, None, tmp_path / "parts")
    times = measure_parts(tmp_path / "parts", 1, 3)
    assert times.points == model.points
    assert all(t > 0 for t in (*times.times_for(unet, model.points, tmp_path).before[1:], *times.times.after[:-1]))


def test_a_private_input_may_go_around_the_servers_part(tmp_path: Path) -> None:
    """Networks that clean an image add what they found to the image itself."""
    nodes = [*conv("x", "a"), *conv("a", "b"), *conv("b", "noise"), helper.make_node("Add", ["x", "noise"], ["y"])]
    weights = {f"{name}.w": onnx_models.random(3, 3, 3, 3, seed=at) for at, name in enumerate(("a", "b", "noise"))}
    shape = [1, 3, 16, 16]
    file = onnx_models.write(tmp_path / "clean.onnx", nodes, {"x": shape}, {"y": shape}, weights)
    model = cuttable(import_onnx(file, {}))
    found = rules_of(model, read_model(file).origins(), [], ["x"])
    allowed = allowed_splits(model.points, model.crossings, ["float32"], found)
    names = {tuple(point.name for point in model.crossings[s.start, s.end]) for s in allowed if s.start != s.end}
    assert ("a", "b") in names and ("a", "noise") in names
    assert not any("x" in sent for sent, _ in names)
