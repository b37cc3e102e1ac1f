"""Help texts: they fit a terminal of 80 columns, end with examples that work, and have no slips of formatting."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from tests.console.test_progress import Terminal, plain
from tests.support.processes import ROOT
from zmq_offload.cli.completion import SHELLS, parsers
from zmq_offload.cli.main import COMMANDS, PROGRAMS, main, make_parser
from zmq_offload.common.version import __version__
from zmq_offload.console.parser import EXAMPLE, Parser

PARSERS = {parser.prog: parser for parser in parsers(make_parser())}


def help_of(parser: Parser) -> str:
    parser.complete_options()
    return parser.format_help()


@pytest.fixture(params=PARSERS)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Parser:
    monkeypatch.setenv("COLUMNS", "80")
    return PARSERS[request.param]


def test_every_command_and_program_is_checked() -> None:
    assert {prog.split()[1] for prog in PARSERS if " " in prog} == {*COMMANDS, *PROGRAMS}
    assert "zmq-offload keys authorize" in PARSERS


def test_help_fits_80_columns(parser: Parser) -> None:
    long = [line for line in help_of(parser).splitlines() if len(line) > 80]
    assert not long


def test_no_help_text_shows_a_doubled_percent_sign(parser: Parser) -> None:
    assert "%%" not in help_of(parser)
    assert "%(" not in help_of(parser)


def test_every_option_has_a_help_text(parser: Parser) -> None:
    silent = [action.option_strings for action in parser._actions if action.option_strings and not action.help]
    assert not silent


def test_help_texts_are_phrases_in_one_style(parser: Parser) -> None:
    """They begin in lower case, or with a name, and have no period at the end; descriptions are sentences."""
    assert parser.description and re.fullmatch(r"[A-Z].*\.?[.)]", parser.description, re.S)
    for action in parser._actions:
        if action.help:
            assert not action.help.endswith("."), action.option_strings
            assert re.match(r"[a-z]|TVM |an? ", action.help), action.option_strings


def test_help_ends_with_examples_that_parse(parser: Parser) -> None:
    assert parser.epilog and parser.epilog.startswith(EXAMPLE)
    commands = parser.epilog.removeprefix(EXAMPLE).replace("\\\n", " ").splitlines()
    for command in commands:
        words = shlex.split(command.partition(" > ")[0])
        assert " ".join(words).startswith(parser.prog)
        if "--help" in words:
            continue
        make_parser().parse_args(words[1:])
        if words[1] in COMMANDS:
            make_parser(words[1]).parse_args(words[1:])


def test_commands_in_the_documentation_have_the_options_that_it_gives_them() -> None:
    """Also those within a sentence, which no test runs."""
    options = {prog: {*parser._option_string_actions, "--version"} for prog, parser in PARSERS.items()}
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    checked = 0
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        commands = re.findall(r"`(zmq-offload [a-z][^`]*)`", text) + re.findall(r"^(zmq-offload [^&|>\n]*)", text, re.M)
        for command in commands:
            words = command.split()
            prog = " ".join(words[: 3 if " ".join(words[:3]) in options else 2])
            assert prog in options, (page.name, command)
            known = {option for name in options if name.startswith(prog) for option in options[name]}
            given = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", command))
            assert given <= known, (page.name, command)
            checked += len(given)
    assert checked > 100


def test_on_a_terminal_help_has_the_same_words_in_color(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich_argparse")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("load", "keys"):
        parser = make_parser(name)
        command = next(p for p in parsers(parser) if p.prog == f"zmq-offload {name}")
        words = command.format_help().split()
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        command.print_help()
        monkeypatch.undo()
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "xterm-256color")
        assert "\x1b[" in terminal.getvalue()
        shown = plain(terminal.getvalue())
        assert [word.lower() for word in shown.split()] == [word.lower() for word in words]
        assert max(map(len, shown.splitlines())) <= 80


def test_status_imports_no_other_command_and_no_package_for_terminals() -> None:
    """It is called often, and by scripts."""
    code = """
import sys
from zmq_offload.cli.main import make_parser
make_parser("status").parse_args(["status"])
print([n for n in sys.modules if n in ("rich", "shtab", "rich_argparse", "tvm") or n.startswith("zmq_offload.cli.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "['zmq_offload.cli.main', 'zmq_offload.cli.connections', 'zmq_offload.cli.status']\n"


@pytest.mark.parametrize("command", [None, *PROGRAMS, "status", "profile", "keys"])
def test_version(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*([command] if command else []), "--version"])
    assert capsys.readouterr().out == f"zmq-offload {__version__}\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_commands_options_and_choices(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, *PROGRAMS, "authorize", "--list-cuts", "--max-queued", "--processes", "poisson", "float16"):
        assert word in script, word


def test_completion_without_its_package_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'zmq-offload[cli]'" in capsys.readouterr().err
