"""The progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from zmq_offload.console.progress import Progress, counter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_without_a_terminal_a_step_is_one_plain_line() -> None:
    stream = io.StringIO()
    progress = Progress(2, stream=stream)
    with progress.step("first"):
        pass
    with pytest.raises(ValueError, match="no"), progress.step("second"):
        raise ValueError("no")
    assert re.fullmatch(r"\[1/2\] first \.\.\. \d\.\d s\n\[2/2\] second \.\.\. failed\n", stream.getvalue())


def test_a_terminal_shows_a_bar_and_the_seconds(terminal: Terminal) -> None:
    progress = Progress(2, stream=terminal)
    with progress.step("first") as say:
        say("halfway", 0.5)
        while "halfway" not in terminal.getvalue():
            time.sleep(0.01)
    with pytest.raises(ValueError, match="no"), progress.step("second"):
        raise ValueError("no")
    shown = plain(terminal.getvalue())
    assert re.search(r"\[1/2\] first [━╸╺]+ +\d\.\d s +halfway", shown)
    assert re.search(r"\[1/2\] first \.\.\. \d\.\d s\n", shown)
    assert shown.endswith("[2/2] second ... failed\n")
    assert "\x1b[?25l" not in terminal.getvalue(), "a killed program would leave the cursor hidden"


def test_a_terminal_without_rich_gets_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with Progress(1, stream=terminal).step("only") as say:
        say("not shown within the first seconds")
    assert re.fullmatch(r"\[1/1\] only \.\.\. \d\.\d s\n", terminal.getvalue())


def test_a_long_step_reports_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("zmq_offload.console.progress.REPORT_S", 0.0)
    with Progress(1, stream=stream).step("tune") as say:
        counter(say, "trials")(3, 4)
        monkeypatch.setattr("zmq_offload.console.progress.REPORT_S", 100.0)
        say("once more, and then not for a while")
        say("left out")
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["[1/1] tune ... 3 of 4 trials", "[1/1] tune ... once more, and then not for a while"]
    assert len(lines) == 3


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_a_bar_never_wraps(columns: int, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with Progress(1, stream=terminal).step("tune with 64 trials") as say:
        say("x" * 100, 0.5)
        while terminal.getvalue().count("\r") < 3:
            time.sleep(0.01)
    drawn = re.split(r"[\r\n]", plain(terminal.getvalue()).partition("\n")[0])
    assert max(map(len, drawn)) <= columns


def test_an_interrupted_step_leaves_no_line(terminal: Terminal) -> None:
    for stream in (terminal, io.StringIO()):
        with pytest.raises(KeyboardInterrupt), Progress(1, stream=stream).step("only"):
            raise KeyboardInterrupt
        assert "..." not in stream.getvalue()


def test_what_is_watched_leaves_no_line(terminal: Terminal) -> None:
    elsewhere = io.StringIO()
    for stream in (terminal, elsewhere):
        with Progress(1, stream=stream).watch("4 in flight") as say:
            say("100/s")
    assert elsewhere.getvalue() == ""
    assert "4 in flight" in terminal.getvalue() and "..." not in terminal.getvalue()


def test_quiet_progress_shows_nothing(terminal: Terminal) -> None:
    progress = Progress(2, stream=terminal, quiet=True)
    with progress.step("one") as say:
        say("something", 0.5)
    with progress.watch("two") as say:
        say("something", 0.5)
    assert terminal.getvalue() == ""
