"""`--config FILE`: which value wins, and what is said of a file that is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import broker.config
import workers.config
import zmq_offload.gateway.config

DOCUMENTATION = Path(__file__).parent.parent.parent / "docs" / "configuration.md"

PARSERS: dict[str, Any] = {
    "broker": broker.config.parse,
    "worker": workers.config.parse,
    "gateway": zmq_offload.gateway.config.parse,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fabric.toml"


def test_an_argument_wins_over_the_file_and_that_over_a_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMQ_OFFLOAD_MAX_QUEUED", "1")
    monkeypatch.setenv("ZMQ_OFFLOAD_GRACE", "1")
    file.write_text("[broker]\nmax-queued = 2\nmax_queued_per_model = 3\n")
    parsed = broker.config.parse(["--config", str(file)])
    assert (parsed.queue_limits.max_queued, parsed.queue_limits.max_queued_per_model, parsed.grace) == (2, 3, 1.0)
    assert broker.config.parse([f"--config={file}", "--max-queued", "4"]).queue_limits.max_queued == 4
    monkeypatch.setenv("ZMQ_OFFLOAD_CONFIG", str(file))
    assert broker.config.parse([]).queue_limits.max_queued == 2


def test_values_of_each_kind(file: Path) -> None:
    file.write_text(
        'max-frame-bytes = 1000000\n[gateway]\nbroker = ["tcp://a:1", "tcp://b:2"]\ntimeout = 2.5\n'
        "model-control = true\n"
        'insecure = false\nsystem_shared_memory = true\naccess-list = "lists/gateway"\n'
        '[worker]\npin = false\nprocesses = 3\nexecutor = "echo"\n'
    )
    gateway = zmq_offload.gateway.config.parse(["--config", str(file)])
    assert (list(gateway.broker), gateway.timeout, gateway.max_frame_bytes) == (["tcp://a:1", "tcp://b:2"], 2.5, 10**6)
    assert (gateway.model_control, gateway.insecure, gateway.system_shared_memory) == (True, False, True)
    assert gateway.access_list == str(file.parent / "lists/gateway"), "it is relative to the file's folder"
    assert gateway.config_file == str(file)
    worker = workers.config.parse(["--config", str(file)])
    assert (worker.pin, worker.processes, worker.executor, worker.max_frame_bytes) == (False, 3, "echo", 10**6)
    assert worker.repository == "dist/repository"


@pytest.mark.parametrize(
    ("value", "given"), [("true", ("", "")), ("false", None), ('"tcp://*:1,tcp://*:2"', ("tcp://*:1", "tcp://*:2"))]
)
def test_an_option_that_may_have_a_value(file: Path, value: str, given: object) -> None:
    file.write_text(f"[gateway]\nwith-broker = {value}\n")
    assert zmq_offload.gateway.config.parse(["--config", str(file)]).with_broker == given


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[broker]\nmax-queud = 1", "[broker] has no option 'max-queud'; did you mean 'max-queued'?"),
        ("[brokr]\nx = 1", "table [brokr] is of no program; did you mean 'broker'?"),
        ("[zzz]\nx = 1", "table [zzz] is of no program; the tables are broker, worker, gateway"),
        ("grac = 1", "key 'grac' is no option of any program; did you mean 'grace'?"),
        ('[broker]\nmax-queued = "many"', "[broker] max-queued: 'many' is not a whole number from 1"),
        ("[broker]\ninsecure = 1", "[broker] insecure: 1 is not true or false"),
        ("[broker]\ngrace = { a = 1 }", "[broker] grace: {'a': 1} is not a text, a number"),
        ("[broker]\ngrace = 2020-01-01", "is not a text, a number, true, false, or a list"),
        ("[broker\n", "not TOML: "),
        ("[broker]\nconfig = 'x'", "[broker] has no option 'config'"),
    ],
)
def test_what_is_wrong_is_one_line(file: Path, content: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(content)
    with pytest.raises(SystemExit) as ended:
        broker.config.parse(["--config", str(file)])
    line = capsys.readouterr().err
    assert (ended.value.code, says in line, line.count("\n"), str(file) in line) == (2, True, 1, True), line


def test_keys_for_other_programs_are_left_alone(file: Path) -> None:
    file.write_text('repository = "x"\ngrace = 3\n[worker]\nanything = 1\n')
    assert broker.config.parse(["--config", str(file)]).grace == 3.0


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep").write_text("a = " + "[" * 5000)
    for name, says in (("none", "No such file"), ("binary", "not TOML"), ("deep", "not TOML"), ("", "Is a directory")):
        with pytest.raises(SystemExit):
            broker.config.parse(["--config", str(tmp_path / name)])
        assert says in capsys.readouterr().err


def test_a_shortened_option_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("")
    with pytest.raises(SystemExit):
        broker.config.parse(["--conf", str(file)])
    assert "--config is shortened; write it in full" in capsys.readouterr().err


@pytest.mark.parametrize("program", PARSERS)
def test_the_example_of_the_documentation(program: str, file: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENTATION.read_text(), re.S)
    file.write_text(example)
    parsed = PARSERS[program](["--config", str(file)])
    assert parsed.max_frame_bytes == 268435456
    assert program != "worker" or parsed.repository == str(file.parent / "dist/repository")


def test_an_option_without_its_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        broker.config.parse(["--config"])
    assert capsys.readouterr().err.count("\n") == 1
