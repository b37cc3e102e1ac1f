"""Environment variables: each is listed once, has one meaning, and is named in the error for a wrong value."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

import broker.config
from zmq_offload.cli.main import COMMANDS, PROGRAMS, main, make_parser
from zmq_offload.console import configfile, dotenv, settings
from zmq_offload.console.variables import INTERNAL, PREFIX, VARIABLES, warn_of_unknown
from zmq_offload.errors import InvalidArgument

ROOT = Path(__file__).parent.parent.parent


def readers() -> dict[str, set[str]]:
    """The commands that read each variable by an option."""
    settings.OPTIONS.clear()
    make_parser()
    found = defaultdict(set)
    for variable, programs in settings.OPTIONS.items():
        found[variable] = {program.split()[1] for program in programs}
    return found


def test_options_read_the_variables_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"CLIENT_KEY", "BROKER_KEY", "TOKEN", "ENV_FILE", "NATIVE"}  # whichever command makes a client
    found = readers()
    assert found.pop(f"{PREFIX}CONFIG") == set(configfile.TABLES)
    assert set(found) | {PREFIX + "CONFIG"} | {PREFIX + key for key in keys} == set(VARIABLES)
    for name, programs in found.items():
        if name.removeprefix(PREFIX) not in keys:
            assert programs == set(VARIABLES[name].readers) - {"library"}, name


def test_the_tables_of_a_file_are_the_commands_with_options() -> None:
    assert set(configfile.TABLES) == {*COMMANDS, *PROGRAMS} - {"completion"}


def test_the_page_has_each_variable_once_with_its_meaning() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(rf"^\| `({PREFIX}\w+)` \| (.*?) \| (.*?) \|$", page, flags=re.M)
    wanted = [(name, variable.meaning, ", ".join(variable.readers)) for name, variable in VARIABLES.items()]
    assert rows == wanted


def test_code_and_docs_name_no_other_variable() -> None:
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for package in ("zmq_offload", "broker", "workers"):
        texts += (ROOT / package).rglob("*.py")
    named = {name for path in texts for name in re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", path.read_text())}
    assert named - {f"{PREFIX}SOME_FLAG"} <= {*VARIABLES, *INTERNAL}


@pytest.mark.parametrize("command", ["status", "top", "dashboard", "load", "models list", "doctor", "profile m"])
def test_the_frontends_of_several_brokers_are_a_list(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}FRONTEND", "tcp://*:5555, tcp://127.0.0.1:5557")
    arguments = command.split()
    given = make_parser(arguments[0]).parse_args([*arguments, *(["--broker"] if arguments[0] == "profile" else [])])
    both = ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5557")
    assert given.broker == (None if command == "doctor" else both)
    if command == "doctor":
        assert given.frontend == ("tcp://*:5555", both[1])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["broker"], "HEARTBEAT"),
        (["worker"], "HEARTBEAT"),
        (["worker"], "BROKER"),
        (["status"], "FRONTEND"),
        (["load"], "FRONTEND"),
        (["load"], "TIMEOUT"),
    ],
)
def test_a_wrong_value_names_the_variable(
    arguments: list[str], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PREFIX + name, "nonsense")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"variable {PREFIX}{name}: " in line and "'nonsense'" in line and "--" not in line


@pytest.mark.parametrize(
    ("arguments", "variable", "says"),
    [
        (["worker"], "BROKER_KEY", "variable ZMQ_OFFLOAD_BROKER_KEY given without --worker-key"),
        (["worker", "--worker-key", "x"], "", "--worker-key given without --broker-key"),
        (["broker", "--authorized-clients", "x"], "SERVER_KEY",
         "variable ZMQ_OFFLOAD_SERVER_KEY and --authorized-clients given without --authorized-workers"),
    ],
)  # fmt: skip
def test_incomplete_keys_are_named(
    arguments: list[str], variable: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PREFIX + (variable or "NAME"), "file")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err == f"zmq-offload {arguments[0]}: error: {says}; give all of them or none\n"


def test_an_argument_wins_over_a_wrong_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}HEARTBEAT", "nonsense")
    assert broker.config.parse(["--heartbeat", "2"]).policy.heartbeat == 2


def test_an_unknown_variable_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_unknown("broker", {f"{PREFIX}HEARTBAET": "1", f"{PREFIX}GRACE": "1", f"{PREFIX}SEAT": "1", "PATH": "x"})
    (line,) = capsys.readouterr().err.splitlines()
    wanted = f"unknown variable {PREFIX}HEARTBAET; did you mean '{PREFIX}HEARTBEAT'?"
    assert line == f"broker: warning: {wanted}"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("foo", ""), ("", ""), ("X\nY", ""), ("\udcff", ""), ("slots", "SLOTS"), ("SERVERKEY", "SERVER_KEY")],
)
def test_a_variable_is_compared_without_the_prefix(name: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the prefix any two names would be similar."""
    warn_of_unknown("broker", {PREFIX + name: "1"})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"; did you mean '{PREFIX}{meant}'?") if meant else "did you mean" not in line


@pytest.mark.parametrize("value", ["abc", "99999", "-1", "9" * 30])
def test_variables_of_the_supervisor_are_rejected(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"{PREFIX}PARENT_FD", value)
    assert main(["worker", "--executor", "echo"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{PREFIX}PARENT_FD" in line and "unset" in line


def test_all_commands_are_listed_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert len(re.findall(r"^    [a-z]+\s", capsys.readouterr().out, flags=re.M)) == len(COMMANDS) + len(PROGRAMS)


FILE = """
# the broker
ZMQ_OFFLOAD_FRONTEND=tcp://127.0.0.1:7555   # for devices
export ZMQ_OFFLOAD_BACKEND = "tcp://127.0.0.1:7556"
ZMQ_OFFLOAD_NAME='two words'
OTHER="not closed
ZMQ_OFFLOAD_EMPTY=
nonsense
"""


def test_a_file_sets_variables_that_the_environment_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {f"{PREFIX}BACKEND": "tcp://127.0.0.1:1"}
    dotenv.load(environment)
    assert len(environment) == 1, "without a file"
    (tmp_path / ".env").write_text(FILE)
    dotenv.load(environment)
    assert environment == {
        f"{PREFIX}FRONTEND": "tcp://127.0.0.1:7555",
        f"{PREFIX}BACKEND": "tcp://127.0.0.1:1",
        f"{PREFIX}NAME": "two words",
        f"{PREFIX}EMPTY": "",
    }
    elsewhere = {dotenv.FILE_VARIABLE: "/dev/null"}
    dotenv.load(elsewhere)
    assert len(elsewhere) == 1


def test_a_file_is_read_as_honcho_reads_it(tmp_path: Path) -> None:
    environ = pytest.importorskip("honcho.environ")
    for line in ("A=b", "A = b", "A='b c'", 'A="b # c"', "A=b#c", "A=tcp://*:1", "A=a,b", 'A="a"b', "A=tcp://[::1]:5"):
        theirs = environ.parse(PREFIX + line)
        assert dotenv.parse(PREFIX + line, "f") == theirs, line


def test_a_line_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InvalidArgument, match=f"f, line 2: {PREFIX}A: no closing quotation"):
        dotenv.parse(f"# one\n{PREFIX}A='b", "f")
    with pytest.raises(InvalidArgument, match="f, line 1: a zero byte"):
        dotenv.parse(f"{PREFIX}A=b\0c", "f")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfZMQ_OFFLOAD_NAME=a\n",
        b"ZMQ_OFFLOAD_NAME=a\r\nOTHER=b\r\n",
        b"export\tZMQ_OFFLOAD_NAME=a",
        b"  export   ZMQ_OFFLOAD_NAME = a  # b",
        b"exported=ZMQ_OFFLOAD_NAME=b\nZMQ_OFFLOAD_NAME=a",
        b"\xff\xfe\nZMQ_OFFLOAD_NAME=a",
    ],
)
def test_files_as_editors_and_shells_write_them(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "env").write_bytes(content)
    environment = {dotenv.FILE_VARIABLE: str(tmp_path / "env")}
    dotenv.load(environment)
    assert environment == {dotenv.FILE_VARIABLE: str(tmp_path / "env"), f"{PREFIX}NAME": "a"}


def test_an_unreadable_file_is_named_with_its_variable(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InvalidArgument, match=f"^{dotenv.FILE_VARIABLE}: {path}: ") as caught:
            dotenv.load({dotenv.FILE_VARIABLE: str(path)})
        assert "Errno" not in caught.value.message
