"""Files that cannot be compiled: each gives one line that says what it is and what to do, and nothing is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.not_models import CASES, made, network
from zmq_offload.cli.main import main
from zmq_offload.compile import list_cuts


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_is_no_model_is_named_for_what_it_is(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    path, words = made(case, tmp_path / "in")
    output = tmp_path / "out"
    assert main(["compile", str(path), "--cut", "h", "--name", "m", "-o", str(output), "--quiet", "--verbose"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("zmq-offload: error: ")
    assert re.search(words, line), line
    assert not output.exists()


@pytest.mark.parametrize("command", [["profile"], ["plan", "--bandwidth", "1Mbit", "--rtt", "1ms"]])
def test_other_commands_say_the_same(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, words = made("torch zip", tmp_path)
    assert main([command[0], str(path), *command[1:], "--quiet", "--verbose", "-o", str(tmp_path / "m.png")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


def test_an_onnx_file_may_have_any_name(tmp_path: Path) -> None:
    for name in ("model", "model.pb", "model.bin", "model.v1.2"):
        (tmp_path / name).write_bytes(network().SerializeToString())
        assert [point.name for point in list_cuts(tmp_path / name)] == ["x", "h"]
