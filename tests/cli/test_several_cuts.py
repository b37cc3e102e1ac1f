"""`zmq-offload compile` with several cuts, from options or from a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import onnx_models
from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.cli.main import main
from zmq_offload.plan.files import Plan, PlannedCut, PlannedModel
from zmq_offload.protocol.tensors import TensorSpec

X = TensorSpec("x", "FP32", (2, 8))


def splits(output: Path) -> list[tuple[Any, ...]]:
    return [(s.name, s.until, s.wire, s.predicted) for s in Manifest.read(output / "device").splits]


def plan(file: Path, model: Path, *cuts: PlannedCut, sealed: tuple[str, ...] = ()) -> Path:
    Plan(PlannedModel.of(model, [X]), ("h2",), (), "float32", "latency", {}, sealed, cuts).write(file)
    return file


def test_each_cut_has_the_options_after_it(mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--wire", "float16", "--cut", "h1", "--until", "h4", "--wire", "float32"]
    more = ["--or-cut", "h2", "--or-cut", "h3", "--until", "h4", "--wire", "int8"]
    options = ["compile", str(mlp), "--input", "x=2,8", "--name", "mlp", "-o", str(tmp_path), "--with-fallback"]
    assert main([*options, *where, *more]) == 0
    assert splits(tmp_path) == [
        ("h1", ("h4",), "float32", {}),
        ("h2@float16", (), "float16", {}),
        ("h3@int8", ("h4",), "int8", {}),
    ]
    said = capsys.readouterr()
    assert "device (not sealed: it holds the whole model)" in " ".join(said.out.split())
    assert "  splits  h1; h2@float16; h3@int8\n" in said.out
    assert "by h3@int8: off by at most" in said.out and "by h2@float16: off" in said.out and "by h1:" not in said.out
    assert [line.split(" ... ")[0] for line in said.err.splitlines()[1:3]] == [
        "[2/5] compile 3 subgraphs",
        "[3/5] compile the device bundle",
    ]


def test_a_plan_has_the_cuts_and_what_it_predicts(mlp: Path, tmp_path: Path) -> None:
    figures = {"float32": {"device": 0.1, "server": 0.2, "rest": 0.0}}
    cuts = PlannedCut(("h1",), ("h4",), ("float32", "int8"), figures), PlannedCut(("h2",), (), ("float16",))
    file = plan(tmp_path / "plan.json", mlp, *cuts)
    assert main(["compile", str(mlp), "--cuts", str(file), "--name", "mlp", "-o", str(tmp_path), "--quiet"]) == 0
    assert splits(tmp_path) == [
        ("h1", ("h4",), "float32", figures["float32"]),
        ("h1@int8", ("h4",), "int8", {}),
        ("h2@float16", (), "float16", {}),
    ]
    assert Manifest.read(tmp_path / "device").sealed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--or-cut", "a", "--cut", "b"], "--or-cut needs a --cut before it"),
        (["--cut", "a", "--or-cut", "b", "--cut", "c"], "--cut is given after --or-cut; name each further cut"),
        (["--cuts", "p.json", "--cut", "a"], "--cuts sets --cut, --until and --wire; leave them out"),
        (["--cuts", "p.json", "--wire", "int8"], "--cuts sets --cut, --until and --wire; leave them out"),
        (["--cuts", "p.json", "--plan", "q.json"], "leave them out, and one of --plan and --cuts"),
        (["--cuts", "p.json", "--region", "r", "--cut", "a"], "--cuts sets --cut, --until and --wire"),
        (["--cut", "a", "--or-cut", "b", "--region", "r"], "--region replaces --name"),
    ],
)
def test_wrong_usage(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compile", "m.onnx", "--name", "m", *words])
    assert ended.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cut", "h1", "--or-cut", "h2", "--or-cut", "h1"], "--or-cut: the cut at 'h1' is given twice"),
        (["--cut", "h1", "--wire", "int8", "--or-cut", "nope"], "split 'nope': --cut: the model has no tensor 'nope'"),
        (["--cut", "h0", *(w for i in range(1, 33) for w in ("--or-cut", f"h{i}"))], "--or-cut: 33 splits are given"),
    ],
)
def test_cuts_that_do_not_fit_the_model(
    mlp: Path, tmp_path: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(mlp), "--input", "x=2,8", "--name", "m", "-o", str(tmp_path), "--quiet", *words]) == 1
    assert says in capsys.readouterr().err


def test_plans_that_do_not_fit(mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(file: Path, model: Path, *more: str) -> str:
        assert main(["compile", str(model), "--cuts", str(file), "--name", "m", "-o", str(tmp_path), *more]) == 1
        return capsys.readouterr().err

    one = plan(tmp_path / "one.json", mlp)
    assert f"--cuts: {one} has one cut; compile it with --plan" in refused(one, mlp)
    cut = PlannedCut(("h2",), (), ("float32",))
    sealed = plan(tmp_path / "sealed.json", mlp, cut, sealed=("w2",))
    assert "keeps 'w2' off the device (--seal), and --with-fallback would put a copy" in refused(
        sealed, mlp, "--with-fallback"
    )
    other = onnx_models.mlp(tmp_path / "other.onnx", hidden=4)
    assert "belongs to another model" in refused(sealed, other)
