"""`zmq-offload compile` from the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import tvm
from onnx import helper

from tests.support import onnx_models
from zmq_offload.artifacts.manifest import Manifest
from zmq_offload.artifacts.repository import Batching, Repository
from zmq_offload.cli.main import main


def test_compile_writes_bundle_and_repository_and_reports_them(
    mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, repository = tmp_path / "dist", tmp_path / "models"
    arguments = ["compile", str(mlp), "--input", "x=2,8", "--cut", "h2", "--until", "h4", "--name", "mlp"]
    assert main([*arguments, "--repository", str(repository), "-o", str(output)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[:4] == [
        f"subgraph: {repository}/mlp/1  (mlp version 1)",
        "  takes   h2 FP32[2,16]",
        "  returns h4 FP32[2,8]",
        f"device:   {output}/device",
    ]
    steps = [re.sub(r"[0-9.]+ s$", "T", line) for line in said.err.splitlines()]
    assert steps == [
        "[1/5] import and split the model ... T",
        "[2/5] compile the subgraph 'mlp' ... T",
        "[3/5] compile the device bundle ... T",
        "[4/5] compare with the file ... T",
        f"[5/5] write {output} ... T",
    ]
    assert Repository(repository).read("mlp", 1).version == 1
    again = [*arguments, "--repository", str(repository), "-o", str(output), "--quiet"]
    assert main([*again, "--only-subgraph"]) == 0
    assert "device:" not in capsys.readouterr().out
    assert main([*again, "--only-subgraph", "--version", "9", "--target", '{"kind": "llvm", "mcpu": "generic"}']) == 0
    assert capsys.readouterr().err == ""
    assert Repository(repository).versions("mlp") == [1, 2, 9]
    assert Repository(repository).read("mlp", 9).target["mcpu"] == "generic"
    assert main(again) == 1
    assert re.fullmatch(r"zmq-offload: error: .*/mlp/1 exists; .*\n", capsys.readouterr().err)
    assert main([*again, "--force", "--policy", "label:stable"]) == 0
    assert Manifest.read(output / "device").offloaded[0].version == "label:stable"
    wider = ["compile", str(mlp), "--input", "x=3,8", *again[4:], "--version", "10", "--force"]
    assert main(wider) == 1
    assert "version 10 of 'mlp' would have another signature than version 9" in capsys.readouterr().err
    assert main([*wider, "--new-signature"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--policy", "stable"], "version 'stable' is neither a whole number from 1 nor 'latest' nor a label"),
        (["--policy", "0"], "version 0 is not a whole number from 1"),
        (["--policy", "label:"], "label"),
        (["--policy", "2", "--only-subgraph"], "--policy is for the device bundle, which --only-subgraph keeps"),
    ],
)
def test_a_version_that_no_device_can_ask_for_is_wrong_usage(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compile", "m.onnx", "--cut", "t", "--name", "m", *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_list_cuts_is_a_table_of_names_that_cut_takes(
    convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(convnet), "--input", "x=1,3,8,8", "--list-cuts"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["TENSOR", "SHAPE", "BYTES", "OFFLOADED"]
    assert rows[1] == ["x", "FP32[1,3,8,8]", "768", "100.0%"]
    assert ["features", "FP32[1,8,8,8]", "2,048", "0.2%"] in rows


def test_list_cuts_names_several_tensors_where_no_single_one_separates(
    diamond: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(diamond), "--list-cuts"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert rows and all(len(row.split("  ")[0].split()) > 1 for row in rows)


def test_list_cuts_reports_that_there_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = onnx_models.write(
        tmp_path / "m.onnx", [helper.make_node("Add", ["a", "b"], ["y"])], {"a": [2], "b": [2]}, {"y": [2]}, {}
    )
    assert main(["compile", str(path), "--list-cuts"]) == 0
    assert "no single tensor separates" in capsys.readouterr().out


def test_the_graph_is_drawn_with_its_cuts(convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compile", str(convnet), "--input", "x=1,3,8,8"]
    assert main([*command, "--list-cuts", "--svg", str(tmp_path / "graph.svg")]) == 0
    drawn = ElementTree.parse(tmp_path / "graph.svg").getroot()
    groups = [element.get("id", "") for element in drawn.iter()]
    assert any(group.startswith("cut") for group in groups)
    assert main([*command, "--list-cuts", "--svg", str(tmp_path / "none" / "graph.svg")]) == 1
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compile"],
        ["compile", "m.onnx"],
        ["compile", "m.onnx", "--cut", "a"],
        ["compile", "m.onnx", "--name", "n"],
        ["compile", "m.onnx", "--cut", "a", "--name", "n", "--svg", "g.svg"],
        ["compile", "m.onnx", "--cut", "a", "--name", "n", "--version", "0"],
        ["compile", "m.onnx", "--cut", "a", "--name", "n", "--max-batch", "0"],
        ["compile", "m.onnx", "--cut", "a", "--name", "n", "--max-batch", "2", "--batch-delay", "-1"],
        ["compile", "m.onnx", "--cut", "a", "--name", "n", "--batch-delay", "5"],
        ["compile", "m.onnx", "--cut", "a", "--name", "n", "--max-batch", "many"],
        ["compile", "m.onnx", "--cut", "a", "--name", "n", "--wire", "float8"],
        ["compile", "m.onnx", "--region", "a"],
        ["compile", "m.onnx", "--region", "a", "--cut", "t", "--region", "b", "--until", "u"],
        ["compile", "m.onnx", "--cut", "t", "--region", "a", "--cut", "t"],
        ["compile", "m.onnx", "--name", "n", "--region", "a", "--cut", "t"],
        ["compile", "m.onnx", "--region", "a", "--cut", "t", "--name", "n"],
        ["compile", "m.onnx", "--cut", "a", "--name", "n", "--tune", "0"],
        ["compile", "m.onnx", "--cut", "a", "--name", "n", "-o", ""],
        ["compile", "m.onnx", "--cut", "a", "--name", "n", "--repository", " "],
        ["compile", "m.onnx", "--plan", "", "--name", "n"],
        ["profile", "m.onnx", "--csv", ""],
        ["plan", "m.onnx", "--bandwidth", "1Mbit", "--rtt", "1ms", "--save", ""],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert re.fullmatch(r"zmq-offload[^\n]*: error: [^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["none.onnx", "--cut", "a", "--name", "n"],
        ["{mlp}", "--cut", "h2", "--name", "n"],
        ["{mlp}", "--cut", "h9", "--name", "n", "--input", "x=2,8"],
        ["{mlp}", "--cut", "h2", "--name", "n", "--input", "x"],
        ["{mlp}", "--list-cuts", "--input", "y=2,8"],
        ["{mlp}", "--cut", "h2", "--name", "n", "--input", "x=2,8", "--target", "?"],
        ["{mlp}", "--cut", "h2", "--name", "n", "--input", "x=2,8", "--max-batch", "4"],
    ],
)
def test_failures_are_one_line_and_end_with_1(
    mlp: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.format(mlp=mlp) for a in arguments]
    assert main(["compile", *filled, "--quiet", "-o", str(tmp_path)]) == 1
    assert re.fullmatch(r"zmq-offload[^\n]*: error: [^\n]+\n", capsys.readouterr().err)


def test_ctrl_c_inside_tvm_is_not_reported_as_an_error_of_the_model(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @tvm.transform.module_pass(opt_level=0)
    def interrupted(mod: tvm.IRModule, _: object) -> tvm.IRModule:
        raise KeyboardInterrupt

    monkeypatch.setattr("zmq_offload.compile.build.cpu_pipeline", lambda *_: interrupted)
    arguments = ["compile", str(mlp), "--input", "x=2,8", "--cut", "h2", "--name", "n", "--quiet", "-o", str(tmp_path)]
    assert main(arguments) == 130
    assert "error" not in capsys.readouterr().err


def test_batching_is_written_into_the_repository(mlp: Path, tmp_path: Path) -> None:
    arguments = [
        "compile",
        str(mlp),
        "--input",
        "x=N,8",
        "--cut",
        "h2",
        "--name",
        "mlp",
        "-o",
        str(tmp_path),
        "--quiet",
    ]
    assert main([*arguments, "--max-batch", "8", "--batch-delay", "500"]) == 0
    assert Repository(tmp_path / "repository").read("mlp", 1).batching == Batching(8, 500)
    assert main([*arguments, "--only-subgraph", "--max-batch", "4"]) == 0
    assert Repository(tmp_path / "repository").read("mlp", 2).batching == Batching(4, 0)
    assert main([*arguments, "--only-subgraph"]) == 0
    assert Repository(tmp_path / "repository").read("mlp", 3).batching is None


def test_later_builds_use_tuning_results(convnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "compile",
        str(convnet),
        "--input",
        "x=1,3,32,32",
        "--cut",
        "features",
        "--name",
        "net",
        "--quiet",
        "--force",
    ]
    arguments += ["-o", str(tmp_path / "dist"), "--tuning-db", str(tmp_path / "db")]
    assert main([*arguments, "--tune", "4"]) == 0
    assert re.search(
        r"^tuning: +\d+ of \d+ functions are faster than by rule, .* 4 trials$", capsys.readouterr().out, re.M
    )
    (choices,) = (tmp_path / "db").glob("*/choices.json")
    before = choices.read_text()
    assert sum(c["trials"] for c in json.loads(before).values()) == 4
    assert main(arguments) == 0
    assert "tuning:" not in capsys.readouterr().out
    assert choices.read_text() == before
    choices.write_text("{")
    assert main(arguments) == 1
    assert "choices.json is damaged" in capsys.readouterr().err


ARM = '{"kind": "llvm", "mtriple": "aarch64-linux-gnu"}'


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tuning-db", "nowhere"], "--tuning-db: the folder nowhere does not exist"),
        (
            ["--tune", "4", "--target", '{"kind":"llvm","mtriple":"aarch64-linux-gnu"}'],
            "--tune: this machine cannot run code",
        ),
        (["--tune", "4", "--tuning-db", "/dev/null/db"], "/dev/null/db"),
    ],
)
def test_impossible_tuning_is_one_clear_line(
    more: list[str], words: str, mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compile", str(mlp), "--input", "x=2,8", "--cut", "h2", "--name", "m", "-o", str(tmp_path), "--quiet"]
    assert main([*arguments, *more]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_without_tvm_help_works_and_the_error_is_clear(mlp: Path) -> None:
    program = """
import sys
for name in ("tvm", "onnx"):
    sys.modules[name] = None
from zmq_offload.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert "--list-cuts" in run("compile", "--help").stdout
    failed = run("compile", str(mlp), "--list-cuts")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1 and "pip install 'zmq-offload[compile]'" in failed.stderr


def test_each_region_has_the_options_after_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = onnx_models.branches(tmp_path / "m.onnx")
    arguments = ["compile", str(path), "--input", "x=1,3,8,8", "--quiet", "-o", str(tmp_path), "--wire", "float16"]
    arguments += ["--region", "left", "--cut", "features", "--until", "left"]
    arguments += ["--region", "rest", "--wire", "int8", "--cut", "own_conv", "left", "--cut", "right", "--until", "y"]
    assert main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:7] == [
        f"subgraph: {tmp_path}/repository/left/1  (left version 1)",
        "  takes   features FP16[1,8,8,8]",
        "  returns left FP16[1,8,8,8]",
        f"subgraph: {tmp_path}/repository/rest/1  (rest version 1)",
        "  takes   own_conv INT8[1,8,8,8]; own_conv.scale FP32[2]; left INT8[1,8,8,8]; left.scale FP32[2]; "
        "right INT8[1,8,8,8]; right.scale FP32[2]",
        "  returns y INT8[1,8,1,1]; y.scale FP32[2]",
        f"device:   {tmp_path}/device",
    ]
    assert said[7].startswith("check:    against the file in ONNX Runtime ")
    assert said[10] == "accuracy: float16 and int8 on the wire against the uncut model, on a random input"
    assert [line.split()[0] for line in said[11:]] == ["y", "right"]
