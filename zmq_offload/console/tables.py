"""Tables and lists of facts: aligned plain text, and on a terminal with `rich` the same in color.

A narrow terminal gets fewer columns, never wrapped numbers. Files and pipes get all columns.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TextIO, TypeAlias
from unicodedata import combining, east_asian_width

from zmq_offload.console.terminal import console_of
from zmq_offload.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

GAP = 2
"""Spaces between two columns."""

_FOLDED = 16
"""The least width of a column whose cells are wrapped."""

_SHORT = 24
"""The least width of a column whose cells are shortened."""


class Column(NamedTuple):
    """A heading and how its cells are shown."""

    heading: str
    right: bool = False
    """Aligned to the right: numbers."""
    folds: bool = False
    """Long cells are wrapped within the column on a narrow terminal."""
    shortens: bool = False
    """Long cells lose their middle on a narrow terminal: names, which any peer may choose."""
    spare: int = 0
    """Left out on a terminal that is too narrow, the highest number first; 0 is always shown."""


@dataclass(frozen=True)
class Table:
    """Rows of text under headings. With a title the rows are indented, and a table without rows says "none"."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""
    bold: Collection[int] = ()
    """Numbers of the rows that stand out."""
    styles: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """Colors of cells, by row and column, as `rich` names them."""

    def __post_init__(self) -> None:
        # A name from an ONNX file may hold anything, such as line ends and escape sequences.
        object.__setattr__(self, "rows", [[printable(cell) for cell in row] for row in self.rows])

    def __str__(self) -> str:
        if self.title and not self.rows:
            return f"{self.title}: none"
        indent = "  " if self.title else ""
        widths = self.widths()
        cells = [[column.heading for column in self.columns], *self.rows]
        lines = [indent + aligned(self.columns, widths, row) for row in cells]
        return "\n".join([f"{self.title}:", *lines] if self.title else lines)

    def widths(self) -> list[int]:
        cells = [[column.heading for column in self.columns], *self.rows]
        return [max(width_of(row[at]) for row in cells) for at in range(len(self.columns))]

    def fitted(self, width: int) -> tuple[Table, list[str]]:
        """The table with shorter names, and without the spare columns that `width` has no room for, and the headings of
        those."""
        columns = list(self.columns)
        least = [min(w, _FOLDED) if c.folds else w for c, w in zip(columns, self.widths(), strict=True)]
        over = sum(least) + GAP * (len(columns) - 1) - width
        for at, column in enumerate(columns):
            if column.shortens and over > 0:
                shorter = max(min(least[at], _SHORT), least[at] - over)
                over -= least[at] - shorter
                least[at] = shorter
        keep = fitting(columns, least, width)
        hidden = [column.heading for at, column in enumerate(columns) if at not in keep]
        rows = [
            [shortened(row[at], least[at]) if columns[at].shortens else row[at] for at in keep] for row in self.rows
        ]
        places = {at: place for place, at in enumerate(keep)}
        styles = {(row, places[at]): style for (row, at), style in self.styles.items() if at in places}
        return Table([columns[at] for at in keep], rows, self.title, self.bold, styles), hidden


@dataclass(frozen=True)
class Facts:
    """Lines with a word and a text. Long texts are wrapped next to the word."""

    rows: Sequence[tuple[str, str]]
    width: int = 8
    wrong: Collection[int] = ()
    """Numbers of the rows that are red on a terminal."""

    def __str__(self) -> str:
        return "\n".join(f"{word:<{self.width}} {text}" for word, text in self.rows)


class Lines:
    """A table that is printed line by line as rows come in, with widths that are known before.

    On a narrow terminal it has fewer columns, as a `Table` has.
    """

    def __init__(self, columns: Sequence[Column], widths: Sequence[int], stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._console = console_of(self._stream)
        most = self._console.width if self._console is not None else sys.maxsize
        self._keep = fitting(columns, widths, most, gap=1)
        self._columns = [columns[at] for at in self._keep]
        self._widths = [widths[at] for at in self._keep]
        self.hidden = [column.heading for at, column in enumerate(columns) if at not in self._keep]

    def head(self) -> None:
        self._print([column.heading for column in self._columns], "bold")

    def row(self, cells: Sequence[str], *, wrong: bool = False) -> None:
        """Print a row; a `wrong` one is red."""
        self._print([cells[at] for at in self._keep], "red" if wrong else "")

    def _print(self, cells: Sequence[str], style: str) -> None:
        text = aligned(self._columns, self._widths, cells, gap=1)
        if self._console is None:
            print(text, file=self._stream, flush=True)
        else:
            self._console.print(text, style=style, soft_wrap=True)


class Prose(str):
    """Sentences, which a terminal wraps between words. Other text may hold paths and commands, and is not wrapped."""


Part: TypeAlias = str | Table | Facts


def show(*parts: Part, stream: TextIO | None = None) -> None:
    """Print parts one below the other."""
    stream = stream or sys.stdout
    console = console_of(stream)
    if console is None:
        print(text(parts), file=stream)
        return
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=not isinstance(part, Prose))
        else:
            _print(console, part)


def text(parts: Iterable[Part]) -> str:
    """Parts as plain text."""
    return "\n".join(map(str, parts))


def aligned(columns: Sequence[Column], widths: Sequence[int], cells: Sequence[str], gap: int = GAP) -> str:
    """A row as text: each cell as wide as its column. A cell that is longer makes its own line longer."""
    filled = (padded(c, w, column.right) for column, w, c in zip(columns, widths, cells, strict=True))
    return (" " * gap).join(filled).rstrip()


def width_of(text: str) -> int:
    """The places that a text takes at a terminal: two for a wide character, none for one that joins another."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def padded(text: str, width: int, right: bool = False) -> str:
    """A text with spaces before or after it."""
    spaces = " " * (width - width_of(text))
    return spaces + text if right else text + spaces


def shortened(text: str, width: int) -> str:
    """A text of at most `width` places. The middle is left out: a supervisor's workers differ at the end."""
    if width_of(text) <= width:
        return text
    begin, end = text, text
    while width_of(begin) > (width - 1) // 2:
        begin = begin[:-1]
    while width_of(end) > width // 2:
        end = end[1:]
    return f"{begin}…{end}"


def fitting(columns: Sequence[Column], widths: Sequence[int], most: int, gap: int = GAP) -> list[int]:
    """The columns that are shown where there is room for `most` characters."""
    keep = list(range(len(columns)))
    for at in sorted(keep, key=lambda at: -columns[at].spare):
        if not columns[at].spare or sum(widths[i] + gap for i in keep) - gap <= most:
            break
        keep.remove(at)
    return keep


def _print(console: Console, part: Table | Facts) -> None:
    from rich.padding import Padding
    from rich.table import Table as Drawn
    from rich.text import Text

    if isinstance(part, Facts):
        grid = Drawn.grid(padding=(0, 1))
        grid.add_column(style="cyan", no_wrap=True, min_width=part.width)
        grid.add_column(overflow="fold")
        for number, (word, said) in enumerate(part.rows):
            grid.add_row(Text(word), Text(said), style="red" if number in part.wrong else None)
        console.print(grid)
        return
    if part.title:
        console.print(Text(f"{part.title}:" if part.rows else f"{part.title}: none", style="bold cyan"))
        if not part.rows:
            return
    indent = 2 if part.title else 0
    shown, hidden = part.fitted(console.width - indent)
    drawn = Drawn(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for column in shown.columns:
        drawn.add_column(
            Text(column.heading),
            justify="right" if column.right else "left",
            no_wrap=not column.folds,
            overflow="fold" if column.folds else "ellipsis",
        )
    for number, row in enumerate(shown.rows):
        cells = (Text(cell, style=shown.styles.get((number, at), "")) for at, cell in enumerate(row))
        drawn.add_row(*cells, style="bold green" if number in part.bold else None)
    console.print(Padding(drawn, (0, 0, 0, indent)))
    if hidden:
        console.print(Text(f"{' ' * indent}(a wider terminal also shows {', '.join(hidden)})", style="dim"))
