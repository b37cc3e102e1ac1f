"""Bundles with several cuts: each split computes the same, and they share kernels, weights and one library."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import onnx_models
from tests.support.adaptive_bundles import run_splits
from tests.support.local_client import LocalClient, run_uncut
from zmq_offload.artifacts.manifest import LIBRARY
from zmq_offload.artifacts.repository import LIBRARY as SUBGRAPH
from zmq_offload.compile import Compiled, Cut, check, compile_model, measure_losses
from zmq_offload.compile.inprocess import WHOLE, Way, running
from zmq_offload.device.model import load
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument

SHAPES: dict[str, Any] = {"x": (1, 3, 12, 12)}
CUTS = ["x", "relu1", ["conv2", "relu1"], Cut("features", wire="float16"), Cut("relu1", until="features", wire="int8")]
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "int8": 5e-2}


@pytest.fixture(scope="module")
def compiled(convnet: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("adaptive")
    return compile_model(convnet, inputs=SHAPES, cuts=CUTS, name="net", output=folder, with_fallback=True, version=3)


def test_every_split_computes_the_same(convnet: Path, compiled: Compiled) -> None:
    x = onnx_models.random(1, 3, 12, 12)
    (right,) = run_uncut(convnet, SHAPES, [x])
    found = run_splits(compiled, [x])
    assert list(found) == ["x", "relu1", "conv2+relu1", "features@float16", "relu1@int8", ""]
    for split in compiled.manifest.splits:
        np.testing.assert_allclose(found[split.name][0], right, rtol=0, atol=TOLERANCE[split.wire])
    np.testing.assert_allclose(found[""][0], right, rtol=0, atol=1e-5)


def test_a_device_runs_each_split_and_the_whole_model(convnet: Path, compiled: Compiled) -> None:
    x = onnx_models.random(1, 3, 12, 12)
    (right,) = run_uncut(convnet, SHAPES, [x])
    for split in compiled.manifest.splits:
        client = LocalClient(compiled.subgraphs[0].parent.parent)
        with load(compiled.device, client=client, split=split.name) as model:
            np.testing.assert_allclose(model(x), right, rtol=0, atol=TOLERANCE[split.wire])
        assert [call[0] for call in client.calls] == [split.region.model]
    client = LocalClient(compiled.subgraphs[0].parent.parent)
    with load(compiled.device, client=client, offload="never") as model:
        np.testing.assert_allclose(model(x), right, rtol=0, atol=1e-5)
    assert not client.calls


def test_the_manifest_tells_the_splits(compiled: Compiled) -> None:
    manifest = compiled.manifest
    assert [(s.cut, s.until, s.wire) for s in manifest.splits] == [
        (("x",), (), "float32"),
        (("relu1",), (), "float32"),
        (("conv2", "relu1"), (), "float32"),
        (("features",), (), "float16"),
        (("relu1",), ("features",), "int8"),
    ]
    assert manifest.offloaded == tuple(s.region for s in manifest.splits)
    assert [r.model for r in manifest.offloaded] == [m.name for m in compiled.models]
    assert manifest.local and not manifest.fallback and not manifest.sealed
    assert [t.name for t in manifest.splits[4].region.inputs] == ["relu1", "relu1.scale"]
    assert {m.version for m in compiled.models} == {3}


def test_the_models_are_entries_of_one_library(compiled: Compiled) -> None:
    libraries = [folder / SUBGRAPH for folder in compiled.subgraphs]
    assert len({file.stat().st_ino for file in libraries}) == 1
    assert len({model.checksum for model in compiled.models}) == 1
    assert len({model.entry for model in compiled.models}) == len(CUTS)


def test_kernels_and_weights_are_in_each_library_once(tmp_path: Path) -> None:
    file = onnx_models.two_products(tmp_path / "m.onnx")
    both = compile_model(file, cuts=["x", "h2"], name="m", output=tmp_path / "both", with_fallback=True)
    whole = compile_model(file, cut="x", name="m", output=tmp_path / "whole")
    one_weight = 64 * 64 * 4
    most = (whole.subgraphs[0] / SUBGRAPH).stat().st_size + one_weight
    for library in (both.device / LIBRARY, both.subgraphs[0] / SUBGRAPH):
        assert library.stat().st_size < most


def test_extents_may_be_symbolic(mlp: Path, tmp_path: Path) -> None:
    compiled = compile_model(
        mlp, inputs={"x": ("N", 8)}, cuts=["h1", "h2", "h4"], name="m", output=tmp_path, with_fallback=True
    )
    for rows in (1, 5):
        x = onnx_models.random(rows, 8)
        (right,) = run_uncut(mlp, {"x": (rows, 8)}, [x])
        for found in run_splits(compiled, [x]).values():
            np.testing.assert_allclose(found[0], right, atol=1e-5)


def test_libraries_are_copied_where_links_are_impossible(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", fails)
    compiled = compile_model(mlp, inputs={"x": (2, 8)}, cuts=["h1", "h2"], name="m", output=tmp_path)
    one, two = ((folder / SUBGRAPH) for folder in compiled.subgraphs)
    assert one.stat().st_ino != two.stat().st_ino and one.read_bytes() == two.read_bytes()


def test_new_versions_of_all_models_get_one_number(mlp: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"inputs": {"x": (2, 8)}, "cuts": ["h1", "h2"], "name": "m", "output": tmp_path}
    first = compile_model(mlp, **options)
    with pytest.raises(AlreadyExists, match=r"m\.h1/1 exists"):
        compile_model(mlp, **options)
    shutil.copytree(first.subgraphs[1], tmp_path / "repository" / "m.h2" / "7")
    described = json.loads((tmp_path / "repository/m.h2/7/model.json").read_text())
    (tmp_path / "repository/m.h2/7/model.json").write_text(json.dumps(described | {"version": 7}))
    before = (first.device / LIBRARY).stat()
    second = compile_model(mlp, **options, only_subgraph=True)
    assert [(m.name, m.version) for m in second.models] == [("m.h1", 8), ("m.h2", 8)]
    assert (first.device / LIBRARY).stat() == before
    with pytest.raises(FailedPrecondition, match=r"does not call a model 'm\.h4'"):
        compile_model(mlp, **options | {"cuts": ["h1", "h4"]}, only_subgraph=True)


@pytest.mark.parametrize(
    ("cuts", "says"),
    [
        (["h1", "nope"], "split 'nope': --cut: the model has no tensor 'nope'"),
        (["h1", Cut("h2", until="nope")], "split 'h2': --until: the model has no tensor 'nope'"),
        (["w1", "h1"], "split 'w1': --cut: tensor 'w1' is constant"),
        (["h1", Cut("h4", until="h2")], "split 'h4': --cut: 'h4' is not needed for 'h2'"),
    ],
)
def test_errors_name_the_split(mlp: Path, tmp_path: Path, cuts: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        compile_model(mlp, inputs={"x": (2, 8)}, cuts=cuts, name="m", output=tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_several_cuts_replace_one_cut_and_regions(mlp: Path) -> None:
    for other in ({"cut": "h1"}, {"until": "h4"}, {"regions": []}):
        with pytest.raises(InvalidArgument, match="cuts cannot be combined with cut, until or regions"):
            compile_model(mlp, cuts=["h1", "h2"], name="m", **other)  # type: ignore[arg-type]


def test_the_check_runs_every_split(convnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"inputs": SHAPES, "cuts": ["relu1", "features"], "name": "net", "check": True}
    compiled = compile_model(convnet, **options, output=tmp_path / "right", with_fallback=True)
    assert compiled.check is not None and "a random input, in 3 ways to run it" in str(compiled.check)

    @contextmanager
    def wrong(*given: Any) -> Iterator[list[Way]]:
        with running(*given) as (first, second):
            yield [first, replace(second, run=lambda sample: [array + 1 for array in second.run(sample)])]

    monkeypatch.setattr(check, "running", wrong)
    with pytest.raises(FailedPrecondition, match=r"run as the split 'features', does not compute what .* output 'y'"):
        compile_model(convnet, **options, output=tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_losses_are_measured_for_each_split(convnet: Path, compiled: Compiled) -> None:
    sample = {"x": onnx_models.random(1, 3, 12, 12)}
    losses = measure_losses(convnet, compiled, [sample, sample], inputs=SHAPES)
    assert [loss.way for loss in losses] == [*(s.name for s in compiled.manifest.splits), WHOLE]
    by = {loss.way: loss.absolute for loss in losses}
    assert by["relu1"] < 1e-5 < by["features@float16"] < 2e-3
    assert "y FP32[1,10] by relu1@int8: off by at most" in str(losses[4])


def test_workers_with_gpus_have_one_library_of_all_splits(
    convnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels: list[int] = []
    monkeypatch.setattr("zmq_offload.compile.build.toolkit", lambda: tmp_path)
    monkeypatch.setattr(
        "zmq_offload.compile.packing.machine_code", lambda source, _: kernels.append(source.count("__global__")) or b"x"
    )
    options: dict[str, Any] = {"inputs": SHAPES, "name": "net", "target": "cuda-sm80"}
    several = compile_model(convnet, cuts=["relu1", "features"], output=tmp_path / "several", **options)
    compile_model(convnet, cut="relu1", output=tmp_path / "one", **options)
    assert kernels[1] < kernels[0] <= kernels[1] + 2  # one more, declared and defined: it begins at the later cut
    assert len({(folder / SUBGRAPH).stat().st_ino for folder in several.subgraphs}) == 1
    assert all(model.gpu is not None for model in several.models)
