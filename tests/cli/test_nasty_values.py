"""Values that no option should take: each is one line on stderr and exit code 1 or 2, never a traceback."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from zmq_offload.cli.completion import parsers
from zmq_offload.cli.main import main, make_parser

NASTY = (
    "", " ", "-1", "0", "-0", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 20, "9" * 5000, "-" + "9" * 20, "0x10",
    "1e5", "1_000", "1,", ",", "٣", "½", "a", "a b", "a\nb", "%s", "%", "{}", "\udc80", "--", "=", ":", "x=", "=x",
    "1:2:3:4", "999999", "1000000", "0.0001", "2001", "tcp://", "tcp://:1", "tcp://h:99999", "ipc://", "x" * 10_000,
)  # fmt: skip


def typed() -> Iterator[tuple[str, argparse.Action]]:
    for parser in parsers(make_parser()):
        for action in parser._actions:
            if action.type is not None:
                yield f"{parser.prog} {'/'.join(action.option_strings) or action.dest}", action


TYPED = dict(typed())


def test_no_option_takes_a_bare_number() -> None:
    """`int` and `float` accept numbers that overflow later."""
    assert len(TYPED) > 60
    assert not [name for name, action in TYPED.items() if action.type in (int, float)]


def test_no_option_takes_a_hundred_thousand_threads_or_processes() -> None:
    many = {name: action.type for name, action in TYPED.items() if name.endswith(("threads", "processes"))}
    assert len(many) == 7
    for name, kind in many.items():
        assert callable(kind)
        with pytest.raises(argparse.ArgumentTypeError):
            pytest.fail(f"{name} takes {kind('100000')}")


@pytest.mark.parametrize("name", TYPED)
def test_an_option_takes_a_value_that_can_be_used_or_says_what_is_wrong(name: str) -> None:
    kind = TYPED[name].type
    assert callable(kind)
    for text in NASTY:
        try:
            value = kind(text)
        except (argparse.ArgumentTypeError, TypeError, ValueError):  # what argparse turns into a usage error
            continue
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                assert math.isfinite(number) and abs(number) < 2**63, (text, number)


COMMANDS = {
    "broker": (["--frontend"], ["--backend"], ["--heartbeat"], ["--max-frame-bytes"], ["--server-key"], ["--nonsense"]),
    "worker": (["--broker"], ["--heartbeat"], ["--slots"], ["--threads"], ["--repository"], ["--pin"]),
    "status": (["--broker"], ["--timeout"], ["--watch"]),
    "top": (["--broker"], ["--timeout"], ["--interval"]),
    "doctor": (["--frontend"], ["--backend"], ["--http"], ["--device"], ["--max-connections"], ["--timeout"]),
    "load": (["--model", "m", "--shape"], ["--model", "m", "--rate"], ["--input"], ["--expect"], ["--seed"], ["--csv"]),
    "link": (["--to"], ["--to", "tcp://127.0.0.1:1", "--rtt"], ["--to", "tcp://127.0.0.1:1", "--bandwidth"],
             ["--to", "tcp://127.0.0.1:1", "--outage"], ["--to", "tcp://127.0.0.1:1", "--jitter"]),
    "keys": (["new"], ["revoke", "x", "--list"], ["authorize", "x.key", "--list", "l", "--models"]),
    "plan": (["m.onnx", "--bandwidth", "1Mbit", "--rtt"], ["m.onnx", "--rtt", "1ms", "--bandwidth"]),
    "profile": (["m.onnx", "--repeat"], ["m.onnx", "--broker"]),
    "compile": (["m.onnx", "--cut", "t", "--name", "m", "--max-batch"],),
    "demo": (["--side"], ["--frames"]),
}  # fmt: skip
"""Arguments before a nasty value. With a value of WRONG, each command fails at once."""

WRONG = ("nan", "-1", "9" * 5000, "a\nb", "", "=", "1:2:3:4")


@pytest.mark.parametrize(("command", "options"), [(c, tuple(o)) for c, all_of in COMMANDS.items() for o in all_of])
def test_a_command_with_a_wrong_value_ends_with_one_line(
    command: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZMQ_OFFLOAD_FRONTEND", "tcp://127.0.0.1:9")
    monkeypatch.setenv("ZMQ_OFFLOAD_TIMEOUT", "0.05")
    for text in WRONG:
        if takes(command, options, text):
            continue
        try:
            code = main([command, *options, text])
        except SystemExit as end:
            code = int(str(end.code))
        said = capsys.readouterr().err
        assert code in (1, 2), (options, text[:20], code)
        assert len(said.splitlines()) == 1 and ": error: " in said and len(said) < 1000, (
            options,
            text[:20],
            said[:1200],
        )


def takes(command: str, options: tuple[str, ...], text: str) -> bool:
    """Whether a value is right there, so that the command would begin its work."""
    return (options[-1] == "--repository" and text != "") or (options == ("new",) and text == "nan")
