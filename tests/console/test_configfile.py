"""`--config FILE`: which value wins, and what is said of a file that is wrong."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import broker.config
import workers.config
import zmq_offload.gateway.config
from zmq_offload.cli.completion import parsers
from zmq_offload.cli.main import COMMANDS, PROGRAMS, make_parser
from zmq_offload.console import configfile, settings
from zmq_offload.console.parser import Parser
from zmq_offload.console.variables import PREFIX

DOCUMENTATION = Path(__file__).parent.parent.parent / "docs" / "configuration.md"

PARSERS: dict[str, Any] = {
    "broker": broker.config.parse,
    "worker": workers.config.parse,
    "gateway": zmq_offload.gateway.config.parse,
}

ARGUMENTS = {
    "zmq-offload compile": ["m.onnx"],
    "zmq-offload export": ["dist", "triton"],
    "zmq-offload image": ["raspberry"],
    "zmq-offload profile": ["m.onnx"],
    "zmq-offload plan": ["m.onnx"],
    "zmq-offload models load": ["ocr"],
    "zmq-offload models unload": ["ocr"],
    "zmq-offload models label": ["ocr", "stable", "1"],
    "zmq-offload keys new": ["camera"],
    "zmq-offload keys authorize": ["camera.key"],
    "zmq-offload keys token": ["phone"],
    "zmq-offload keys certificate": ["camera.crt"],
    "zmq-offload keys revoke": ["camera"],
}
"""What a command needs that is no option."""

SAMPLES = (
    "tcp://127.0.0.1:7001", "tcp://127.0.0.1:7002", "127.0.0.1:7001", "127.0.0.1:7002", "tcp://a:1,tcp://b:2",
    "tcp://a:3,tcp://b:4", "on", "off", "text", "json", "debug", "error", "cuda:1", "cuda:2", "echo", "graph",
    "redis://a", "redis://b", "http://a", "http://b", "7", "8", "0.5", "0.6", "64", "96", "1:2:1", "2:4:1", "a=1",
    "a=2", "a:1", "a:2", "x", "y",
    "3.10", "3.12",
)  # fmt: skip
"""Values for options: each takes some of them."""

LEAVES = {
    parser.prog: parser for parser in parsers(make_parser()) if parser.config is not None and parser.prog.count(" ")
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fabric.toml"


REQUIRED = {
    "zmq-offload plan": ["--bandwidth", "1Mbit", "--rtt", "1ms"],
    "zmq-offload export": ["--to", "triton"],
    "zmq-offload link": ["--to", "tcp://127.0.0.1:1"],
    **{f"zmq-offload keys {name}": ["--list", "l"] for name in ("authorize", "token", "certificate", "revoke")},
}
"""Options that a command needs."""


def parser_of(prog: str) -> Parser:
    """A new parser of a command, which knows the environment of now."""
    name = prog.split()[1]
    parser = Parser(prog=f"zmq-offload {name}")
    module = f"{PROGRAMS[name][0]}.config" if name in PROGRAMS else COMMANDS[name][0]
    importlib.import_module(module).add_options(parser)
    if parser.config is None:
        configfile.add_config(parser, name)
    return next(leaf for leaf in parsers(parser) if leaf.prog == prog)


def parse(prog: str, *given: str) -> dict[str, Any]:
    return vars(parser_of(prog).parse_args([*ARGUMENTS.get(prog, []), *REQUIRED.get(prog, []), *given]))


def values_of(action: argparse.Action) -> list[str]:
    """Two values that an option takes and that are not its default; twice the same if there is only one."""
    found = {}
    for text in action.choices or SAMPLES:
        try:
            value = action.type(text) if callable(action.type) else text
        except (argparse.ArgumentTypeError, ValueError):
            continue
        if value != action.default and text != action.default:
            found.setdefault(repr(value), text)
    return [*found.values(), *found.values()][:2]


class Options:
    """Options of a command with two values for each, as they are given."""

    def __init__(self, prog: str, file: Path, actions: Iterable[argparse.Action]) -> None:
        self.prog, self.file = prog, file
        self.values = {action: values_of(action) for action in actions}
        self.config = ["--config", str(file)]

    def write(self, at: int) -> None:
        lines = [f"[{self.prog.split()[1]}]"]
        for action, texts in self.values.items():
            listed = f'["{texts[0]}", "{texts[1]}"]' if several(action) else f'"{texts[at]}"'
            written = ("true", "false")[at] if action.nargs == 0 else listed
            lines.append(f"{name_of(action)} = {written}")
        self.file.write_text("\n".join(lines))

    def taken(self, given: dict[str, Any]) -> dict[str, Any]:
        """Of what a command got, what these options say."""
        return {action.dest: repr(given[action.dest]) for action in self.values}

    def parse(self, *given: str) -> dict[str, Any]:
        return self.taken(parse(self.prog, *given))

    def arguments(self, at: int, beside: bool = False) -> list[str]:
        """All of them as arguments; `beside`: with names of files as those in the file count."""
        words = []
        for action, texts in self.values.items():
            if action.nargs == 0:
                words += [action.option_strings[0]] if at == 0 else []
                continue
            shown = [str(self.file.parent / text) if beside and action.type in PATHS else text for text in texts]
            flag = action.option_strings[-1]
            if action.nargs in ("+", "*"):
                words += [flag, *shown]
            else:
                words += [word for text in shown for word in (flag, text)] if several(action) else [flag, shown[at]]
        return words


def test_argument_file_variable_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order, for each option that has a variable, of all programs."""
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    tried = 0
    for prog, parser in LEAVES.items():
        variables = {action: variable for variable, actions in parser.variables.items() for action in actions}
        options = Options(prog, file, variables)
        bare = [action.option_strings[-1] for action in variables if action.nargs == "?"]
        first, second = options.parse(*options.arguments(0)), options.parse(*options.arguments(1))
        from_file, default = options.parse(*options.arguments(0, beside=True)), options.parse()
        for action in variables:
            assert len({first[action.dest], second[action.dest], default[action.dest]}) > 1, (prog, action.dest)
        file.write_text("")
        assert options.parse(*options.config) == default, prog
        options.write(0)
        assert options.parse(*options.config) == from_file, prog
        assert options.parse(*options.config, *options.arguments(1)) == second, prog
        with monkeypatch.context() as patch:
            for action, variable in variables.items():
                patch.setenv(variable, options.values[action][1])
            assert options.parse(*bare) == second, prog
            assert options.parse(*bare, *options.arguments(0)) == first, prog
            assert options.parse(*options.config) == from_file, prog
            for variable in variables.values():
                patch.setenv(variable, "\x01 wrong")
            if not bare:
                assert options.parse(*options.config) == from_file, "wrong variables that do not count"
        keys = {action: variable[len(PREFIX) :].lower() for action, variable in variables.items()}
        above = {key: action for action, key in keys.items() if key not in configfile.TABLES}
        file.write_text("".join(f'{key} = "{options.values[action][0]}"\n' for key, action in above.items()))
        got = options.parse(*options.config, *bare)
        assert all(got[action.dest] == from_file[action.dest] for action in above.values()), prog
        tried += len(variables)
    assert tried > 100


@pytest.mark.parametrize("prog", LEAVES)
def test_a_value_of_a_file_is_that_of_an_argument(prog: str, file: Path) -> None:
    """For all options, also those without a variable; and an argument replaces what the file says."""
    parser = LEAVES[prog]
    others = [action for group in parser._mutually_exclusive_groups for action in group._group_actions[1:]]
    wanted = [
        action
        for action in parser._actions
        if action.option_strings
        and action not in others
        and not isinstance(action, argparse._VersionAction)
        and not getattr(action, "only_argument", False)
        and action.dest not in ("help", "config", "regions", "wire")  # a --wire after --cut is of that cut
        and action.option_strings[-1] not in REQUIRED.get(prog, [])
    ]
    options = Options(prog, file, wanted)
    options.write(0)
    assert options.parse(*options.config) == options.parse(*options.arguments(0, beside=True))
    given = options.parse(*options.config, *options.arguments(0))
    assert given == options.parse(*options.arguments(0))
    options.write(1)
    without = options.parse(*options.config)
    assert all(without[action.dest] == "False" for action in wanted if action.nargs == 0)


def several(action: argparse.Action) -> bool:
    return action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)


def name_of(action: argparse.Action) -> str:
    return next(option for option in action.option_strings if option.startswith("--"))[2:]


PATHS = (settings.file, settings.folder, settings.path, Path)


def test_what_is_required_may_stand_in_the_file(file: Path) -> None:
    file.write_text('[link]\nto = "tcp://127.0.0.1:1"\noutage = ["1:2", "5:1:refuse"]\n[keys]\nlist = "l"\n')
    found = parser_of("zmq-offload link").parse_args(["--config", str(file)])
    assert (found.to, found.outage) == ("tcp://127.0.0.1:1", ["1:2", "5:1:refuse"])
    assert parser_of("zmq-offload keys revoke").parse_args(["x", "--config", str(file)]).list == file.parent / "l"


def test_an_option_that_excludes_another_replaces_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('[load]\nrate = "1:2:1"\n')
    words = ["--config", str(file)]
    found = parser_of("zmq-offload load").parse_args([*words, "--concurrency", "4"])
    assert (found.rate, [level.concurrency for level in found.concurrency]) == (None, [4])
    assert len(parser_of("zmq-offload load").parse_args(words).rate) == 2
    file.write_text('[load]\nrate = "1:2:1"\nconcurrency = 3\n')
    with pytest.raises(SystemExit):
        parser_of("zmq-offload load").parse_args(words)
    assert "[load] has --concurrency and --rate; give one of them" in capsys.readouterr().err


def test_endpoints_are_given_once_for_all(file: Path) -> None:
    file.write_text('frontend = "tcp://*:7001"\nbackend = "tcp://*:7002"\n[doctor]\ntimeout = 1\n')
    config = ["--config", str(file)]
    found = broker.config.parse([*config])
    assert (found.frontend, found.backend) == ("tcp://*:7001", "tcp://*:7002")
    assert workers.config.parse(config).brokers == ("tcp://127.0.0.1:7002",)
    assert zmq_offload.gateway.config.parse(config).broker == ("tcp://127.0.0.1:7001",)
    for prog in ("status", "models list", "top", "load", "dashboard"):
        reached = parse(f"zmq-offload {prog}", *config)["broker"]
        assert reached == ("tcp://127.0.0.1:7001",), prog
    doctor = parser_of("zmq-offload doctor").parse_args(config)
    assert (doctor.broker, doctor.frontend, doctor.timeout) == (None, ("tcp://*:7001",), 1.0)
    assert parse("zmq-offload doctor", *config, "--broker")["broker"] == ("tcp://127.0.0.1:7001",)
    several = 'frontend = ["tcp://*:7001", "tcp://*:7003"]\nbackend = ["tcp://*:7002", "tcp://*:7004"]\n'
    file.write_text(several + "[gateway]\nspread = false\n")
    places = broker.config.parse([*config]).places
    assert [place.frontend for place in places] == ["tcp://*:7001", "tcp://*:7003"]
    assert workers.config.parse(config).brokers == ("tcp://127.0.0.1:7002", "tcp://127.0.0.1:7004")
    gateway = zmq_offload.gateway.config.parse(config)
    assert (gateway.broker, gateway.spread) == (("tcp://127.0.0.1:7001", "tcp://127.0.0.1:7003"), False)
    file.write_text('backend = "tcp://*:7002"\n[worker]\nbroker = "tcp://b:1"\n')
    assert workers.config.parse(config).brokers == ("tcp://b:1",)


def test_doctor_takes_what_the_programs_are_given(file: Path) -> None:
    file.write_text(
        'frontend = ["tcp://a:1", "tcp://b:1"]\n[broker]\nmetrics = "127.0.0.1:1"\nmax-queued = 1\n'
        '[gateway]\nmetrics = "127.0.0.1:2"\nhttp = "none"\ntimeout = 3\n[worker]\nrepository = "r"\nbroker = "tcp://c:1"\n'
    )
    found = parser_of("zmq-offload doctor").parse_args(["--config", str(file)])
    assert (found.broker_metrics, found.gateway_metrics, found.http) == ("127.0.0.1:1", "127.0.0.1:2", "none")
    assert (found.frontend, found.broker, found.timeout) == (("tcp://a:1", "tcp://b:1"), None, 5.0)
    assert found.repository == str(file.parent / "r")


def test_keys_above_the_tables_reach_the_client_of_a_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIENT_KEY", "BROKER_KEY"):
        monkeypatch.setenv(f"ZMQ_OFFLOAD_{name}", "before")
    file.write_text('client-key = "me.key_secret"\nbroker-key = "broker.key"\n')
    parse("zmq-offload status", "--config", str(file))
    assert os.environ["ZMQ_OFFLOAD_CLIENT_KEY"] == str(file.parent / "me.key_secret")
    assert os.environ["ZMQ_OFFLOAD_BROKER_KEY"] == str(file.parent / "broker.key")


def test_the_file_is_named_where_a_later_check_fails(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('[broker]\nserver-key = "x"\n')
    with pytest.raises(SystemExit):
        broker.config.parse(["--config", str(file)])
    assert f"--config {file}: [broker] server-key given without --authorized-clients" in capsys.readouterr().err
    file.write_text('[gateway]\ncache-redis = "http://x"\n')
    with pytest.raises(SystemExit):
        zmq_offload.gateway.config.parse(["--config", str(file)])
    assert f"--config {file}: [gateway] cache-redis: 'http://x'" in capsys.readouterr().err


def test_a_byte_order_mark_is_skipped(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf[broker]\r\nmax-queued = 2\r\n")
    assert broker.config.parse(["--config", str(file)]).queue_limits.max_queued == 2


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
        (
            "[broker]\nmax-queued = 1\nmax_queued = 2",
            "[broker] max-queued is given twice, with a dash and with an under",
        ),
        ("max-queued = 1\nmax_queued = 2", "max-queued is given twice, with a dash and with an underscore"),
        ("config = 'x'", "config: a file of options names no other; leave it out"),
        ("[[worker]]\nslots = 1", "[[worker]] is a list of tables; write [worker], once"),
        ("[[wrker]]\nslots = 1", "table [wrker] is of no program; did you mean 'worker'?"),
        ("worker = 1", "key 'worker' is 1, not a table; write [worker] and options in the lines below"),
        (
            "broker = 'tcp://a:1'",
            "write [broker] and options in the lines below; above the tables, the broker's "
            "endpoints are frontend and backend",
        ),
        ("insecure = true", "key 'insecure' is not for all programs; write it below [broker]"),
        ("token = 'x'", "key 'token' is no option of any program"),
        ("env-file = 'x'", "key 'env-file' is no option of any program"),
        ("idle_timout = 1", "key 'idle_timout' is no option of any program; did you mean 'idle-timeout'?"),
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
    for name, says in (("none", "No such file"), ("binary", "not UTF-8"), ("deep", "not TOML"), ("", "Is a directory")):
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
    load = parser_of("zmq-offload load").parse_args(["--config", str(file)])
    assert [level.concurrency for level in load.concurrency] == [1, 4, 16]


def test_an_option_without_its_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        broker.config.parse(["--config"])
    assert capsys.readouterr().err.count("\n") == 1
