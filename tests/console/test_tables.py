"""Tables and facts: aligned text in files and pipes, color and fewer columns on a narrow terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest

from tests.console.test_progress import Terminal, plain
from zmq_offload.console.tables import (
    Column,
    Facts,
    Lines,
    Prose,
    Table,
    fitting,
    padded,
    shortened,
    show,
    text,
    width_of,
)

COLUMNS = (Column("NAME", folds=True), Column("BYTES", right=True), Column("NOTE", spare=1), Column("MORE", spare=2))
TABLE = Table(COLUMNS, [("a", "1,000", "first", ""), ("[bold]long[/]", "2", "", "m")], bold=[1])


def on_terminal(columns: int, monkeypatch: pytest.MonkeyPatch, *parts: str | Table | Facts) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    show(*parts, stream=stream)
    return stream.getvalue()


def test_a_table_is_aligned_text() -> None:
    assert str(TABLE).splitlines() == [
        "NAME           BYTES  NOTE   MORE",
        "a              1,000  first",
        "[bold]long[/]      2         m",
    ]


def test_a_title_stands_above_and_tells_of_no_rows() -> None:
    assert str(Table([Column("name")], [("a",)], "workers")) == "workers:\n  name\n  a"
    assert str(Table([Column("name")], [], "workers")) == "workers: none"


def test_without_a_terminal_or_rich_parts_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (Facts([("model", "m"), ("target", "t")]), "", TABLE)
    stream = io.StringIO()
    show(*parts, stream=stream)
    assert stream.getvalue() == text(parts) + "\n"
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert on_terminal(80, monkeypatch, *parts) == stream.getvalue()


def test_a_terminal_gets_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (Facts([("model", "[m]")]), TABLE, Table([Column("name")], [], "queues"))
    shown = on_terminal(80, monkeypatch, *parts)
    assert "\x1b[" in shown
    assert plain(shown).split() == text(parts).split()


def test_a_narrow_terminal_gets_fewer_columns_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = plain(on_terminal(30, monkeypatch, TABLE)).splitlines()
    assert lines[0].split() == ["NAME", "BYTES", "NOTE"]
    assert "".join(lines[-2:]).startswith("(a wider terminal")
    assert max(map(len, lines[:-2])) <= 30


def test_prose_is_wrapped_between_words_and_paths_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(on_terminal(12, monkeypatch, Prose("some words here"))).split("\n") == ["some words ", "here", ""]
    assert plain(on_terminal(12, monkeypatch, "device: /a/long/path")) == "device: /a/long/path\n"


def test_spare_columns_go_in_order() -> None:
    widths = [4, 5, 5, 4]
    assert fitting(COLUMNS, widths, 24) == [0, 1, 2, 3]
    assert fitting(COLUMNS, widths, 23) == [0, 1, 2]
    assert fitting(COLUMNS, widths, 17) == [0, 1]
    assert fitting(COLUMNS, widths, 1) == [0, 1], "the others always stay"


def test_lines_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    lines = Lines(COLUMNS, [6, 5, 4, 4], stream)
    lines.head()
    lines.row(["a", "10", "n", "m"], wrong=True)
    assert stream.getvalue() == "NAME   BYTES NOTE MORE\na         10 n    m\n"
    monkeypatch.setenv("COLUMNS", "18")
    narrow = Terminal()
    lines = Lines(COLUMNS, [6, 5, 4, 4], narrow)
    lines.head()
    lines.row(["a", "10", "n", "m"], wrong=True)
    assert plain(narrow.getvalue()) == "NAME   BYTES NOTE\na         10 n\n"
    assert lines.hidden == ["MORE"]
    assert re.search(r"\x1b\[31m", narrow.getvalue()), "red"


def test_control_characters_in_a_cell_are_escaped() -> None:
    assert str(Table([Column("TENSOR")], [["a\x1b[31m\nb"]])) == "TENSOR\na\\x1b[31m\\nb"


def test_cells_and_facts_may_have_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(COLUMNS, TABLE.rows, styles={(0, 1): "red", (0, 2): "green"})
    shown = on_terminal(80, monkeypatch, table, Facts([("one", "1"), ("two", "2")], wrong=[1]))
    assert "\x1b[31m1,000" in shown and "\x1b[32mfirst" in shown and "\x1b[31mtwo" in shown
    assert "\x1b[32m" not in on_terminal(20, monkeypatch, table), "a column that is left out takes its colors along"


def test_names_are_shortened_before_columns_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may have a name of 512 characters."""
    columns = (Column("name", shortens=True), Column("state"), Column("served", right=True, spare=1))
    table = Table(columns, [("edge" + "x" * 500 + "-4711", "ready", "7"), ("w", "lost", "8")])
    shown = plain(on_terminal(50, monkeypatch, table)).splitlines()
    first = f"edge{'x' * 13}…{'x' * 12}-4711"
    assert [line.split() for line in shown[1:]] == [[first, "ready", "7"], ["w", "lost", "8"]]
    assert "x" * 500 in str(table), "files get all of it"


def test_wide_characters_take_two_places() -> None:
    assert [width_of(text) for text in ("abc", "工作", "e\u0301", "🦊")] == [3, 4, 1, 2]
    assert (padded("工", 4), padded("工", 4, right=True)) == ("工  ", "  工")
    assert [shortened("工作机器", 8), shortened("工作机器", 6), shortened("abcdefgh", 5)] == [
        "工作机器",
        "工…器",
        "ab…gh",
    ]
    table = Table([Column("a"), Column("b")], [("工", "1"), ("ab", "2")])
    assert str(table).splitlines() == ["a   b", "工  1", "ab  2"]
